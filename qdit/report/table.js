// The table: sorting, filters, columns.
{
  const FIRST = 4; // the place of the first number, behind method, bits, family and command
  const body = one("#results tbody");
  const rows = all("tr", body);
  const together = one("#together");
  const families = [...new Set(rows.map((row) => row.dataset.family))];
  let by = null, direction = 1;

  const number = (row) => Number(row.cells[FIRST + Number(by)].dataset.v ?? NaN);
  function key(row) {
    if (by === "bits") return data.bits.indexOf(row.dataset.bits);
    if (by === "family") return families.indexOf(row.dataset.family);
    return by === "name" ? row.dataset.name : number(row);
  }
  function compare(a, b) {
    if (together?.checked && by !== "family") {
      const apart = families.indexOf(a.dataset.family) - families.indexOf(b.dataset.family);
      if (apart) return apart;
    }
    const [first, second] = [key(a), key(b)];
    if (typeof first === "string") return direction * first.localeCompare(second);
    if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second); // missing: last
    return direction * (first - second);
  }
  function arrange() {
    const sorted = by === null ? rows : rows.toSorted((a, b) => {
      const full = b.classList.contains("full") - a.classList.contains("full");
      return full || compare(a, b) || rows.indexOf(a) - rows.indexOf(b);
    });
    body.append(...sorted);
    let last = null;
    for (const row of sorted) {
      row.classList.toggle("unwanted", !visible(data.rows[row.dataset.at]));
      row.classList.toggle("first", last !== null && row.dataset.family !== last && !!together?.checked);
      last = row.dataset.family;
    }
  }

  for (const button of all("#results thead button")) {
    button.addEventListener("click", () => {
      const start = button.dataset.first === "descending" ? -1 : 1;
      direction = by === button.dataset.sort ? -direction : start;
      by = button.dataset.sort;
      all("#results thead th").forEach((th) => th.hasAttribute("aria-sort") && th.setAttribute("aria-sort", "none"));
      button.parentElement.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      arrange();
      say(`Sorted by ${button.textContent}, ${direction > 0 ? "ascending" : "descending"}`);
    });
  }
  together?.addEventListener("change", arrange);
  for (const box of all("[data-filter]")) {
    box.checked = true; // browsers keep what was ticked before
    box.addEventListener("change", () => {
      hidden[box.dataset.filter][box.checked ? "delete" : "add"](box.value);
      tell("filter");
    });
  }
  for (const box of all("[data-column]")) {
    const place = FIRST + Number(box.dataset.column);
    box.checked = box.defaultChecked;
    box.addEventListener("change", () => {
      for (const row of all("#results tr")) {
        const cell = row.cells[place];
        cell.classList.toggle(cell.classList.contains("extra") ? "wanted" : "unwanted",
          cell.classList.contains("extra") === box.checked);
      }
    });
  }
  listeners.filter.push(arrange);
  listeners.choose.push((at) => rows.forEach((row) => row.classList.toggle("chosen", row.dataset.at === String(at))));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("button, a")) tell("choose", Number(row.dataset.at));
  });
  arrange();
}
