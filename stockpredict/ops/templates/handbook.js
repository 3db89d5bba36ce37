const box = document.querySelector('.find'), input = box.querySelector('input'), count = box.querySelector('output');
const plain = text => ' ' + text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, ' ').trim();
const cards = [...document.querySelectorAll('.card')].map(card => [card, plain([...card.querySelectorAll('h3,p,dd,pre')].map(part => part.textContent).join(' '))]);
const parts = [...document.querySelectorAll('section.group')];
function find() {
  const words = plain(input.value).split(' ').filter(Boolean);  // the rule of core/matching: where a word starts
  const fit = start => cards.filter(([, text]) => words.every(w => text.includes(start + w))).map(([card]) => card);
  let found = new Set(fit(' '));
  if (!found.size) found = new Set(fit(''));
  for (const [card] of cards) card.hidden = !found.has(card);
  const n = found.size;
  for (const part of parts) part.hidden = !part.querySelector('.card:not([hidden])');
  count.textContent = n + ' of ' + cards.length;
}
function findFromAddress() {
  const word = decodeURIComponent(location.hash.slice(1));
  if (document.getElementById(word)) return;
  input.value = word; find();
}
input.addEventListener('input', () => { find(); history.replaceState(null, '', '#' + encodeURIComponent(input.value)); });
addEventListener('hashchange', findFromAddress); box.hidden = false; find(); findFromAddress();
