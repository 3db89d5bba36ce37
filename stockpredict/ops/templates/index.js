const form = document.querySelector('.sift');
if (form) {
  const [search, count] = [form.querySelector('input[type=search]'), form.querySelector('output')];
  const picks = [...form.querySelectorAll('select')];
  const keys = picks.map(pick => pick.getAttribute('aria-label').replace('data set', 'source'));
  const rows = [...document.querySelectorAll('.runs tbody tr')].map(row => [row, row.textContent.toLowerCase()]);
  const [from, to] = form.querySelectorAll('input[type=date]');
  const sift = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      const fits = words.every(w => text.includes(w)) && picks.every((p, i) => !p.value || row.dataset[keys[i]] === p.value)
        && (!from.value || row.dataset.day >= from.value) && (!to.value || row.dataset.day <= to.value);
      row.hidden = !fits; shown += fits;
    }
    count.textContent = shown + ' of ' + rows.length + ' runs';
  };
  form.addEventListener('submit', event => event.preventDefault());
  form.addEventListener('input', sift);
  search.value = decodeURIComponent(location.hash.slice(1)); form.hidden = false; sift();
}
