const box = document.querySelector('.find'), input = box.querySelector('input'), count = box.querySelector('output');
const cards = [...document.querySelectorAll('.card')].map(card => [card, card.textContent.toLowerCase()]);
const parts = [...document.querySelectorAll('section.group')];
function find() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const [card, text] of cards) { card.hidden = !words.every(w => text.includes(w)); n += !card.hidden; }
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
