"use strict";
// What the parts of the page share: the data, making elements, and the run that is chosen.
const data = JSON.parse(document.getElementById("data").textContent);
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "rect"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children); // text stays text
  return element;
}

function choices(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

const label = (row) => (row.full ? row.name : `${row.name} ${row.bits}`);
const say = (text) => { one("#said").textContent = text; };

async function copy(button) {
  const text = button.dataset.command;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page that was opened from a file may not
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.textContent;
  button.textContent = done ? "copied" : "not allowed";
  say(done ? `Copied: ${text}` : `This browser does not let pages copy: ${text}`);
  setTimeout(() => { button.textContent = before; }, 1500);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (button) copy(button);
});

// Which rows the filters of the table leave; charts listen.
const hidden = { bits: new Set(), family: new Set() };
const visible = (row) => row.full || !(hidden.bits.has(row.bits) || hidden.family.has(row.family_title));
const listeners = { filter: [], choose: [] };
const tell = (event, ...values) => listeners[event].forEach((each) => each(...values));

// One cell of a group is in the order of Tab, and arrows go from there: `next` gives the element to go to.
function roving(container, selector, next) {
  const elements = () => all(selector, container);
  const first = elements()[0];
  elements().forEach((each) => each.setAttribute("tabindex", each === first ? 0 : -1));
  container.onkeydown = (event) => {
    const from = event.target.closest(selector);
    const to = from && event.key.startsWith("Arrow") && next(from, event.key.slice(5).toLowerCase(), elements());
    if (!to) return;
    event.preventDefault();
    from.setAttribute("tabindex", -1);
    to.setAttribute("tabindex", 0);
    to.focus();
  };
}
