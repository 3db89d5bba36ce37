// What scrolls sideways can be reached by keyboard, and the buttons in code blocks are no landmarks.
(() => {
  const mend = () => {
    for (const box of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .md-typeset__table"))
      if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
    for (const nav of document.querySelectorAll("nav.md-code__nav:not([role])")) nav.setAttribute("role", "none");
  };
  addEventListener("load", mend);
  addEventListener("resize", mend);
  new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
})();
