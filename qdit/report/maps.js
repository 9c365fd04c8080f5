// Error maps: a row a method, a column a timestep or a layer; deep where the error is large.
{
  const bits = one("#map-bits");
  const maps = [["#map-time", data.maps.time, true], ["#map-layers", data.maps.layers, false]];

  function draw(box, map, written) {
    box.replaceChildren();
    if (!map) return box.append("The records of these runs have none.");
    const rows = data.rows.map((row, at) => ({ row, values: map.rows[at] })).filter(({ row, values }) => values && row.bits === bits.value);
    const known = rows.flatMap(({ values }) => values).filter((value) => value !== null);
    if (!known.length) return box.append("No run at these bits has any.");
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const head = make("tr", {}, make("td"));
    map.columns.forEach(({ group }, at) => {
      if (at && map.columns[at - 1].group === group) head.lastChild.colSpan += 1;
      else head.append(make("th", { scope: "colgroup" }, group));
    });
    const body = rows.map(({ row, values }) => make("tr", {}, make("th", { scope: "row", class: `kind-${row.kind}` }, row.name),
      ...values.map((value, at) => {
        const share = value === null ? 0 : (100 * (high - value)) / (high - low || 1);
        const edge = at && map.columns[at - 1].group !== map.columns[at].group ? " edge" : "";
        const text = `${label(row)}, ${map.columns[at].name}: ${value === null ? "not measured" : `${value} dB`}`;
        return make("td", { class: `cell${share > 62 ? " deep" : ""}${value === null ? " none" : ""}${edge}`, style: `--p:${share.toFixed(0)}`, "aria-label": text },
          written && value !== null ? String(Math.round(value) + 0) : "");
      })));
    const table = make("table", { class: "map", role: "grid" }, make("thead", {}, head), make("tbody", {}, ...body));
    table.style.setProperty("--wide", `${Math.max(written ? 26 : 13, Math.min(44, 900 / map.columns.length))}px`);
    const read = make("output", { class: "read" }, "Point at a cell, or go there with Tab and the arrows.");
    const tell_cell = (event) => { const cell = event.target.closest("td.cell"); if (cell) read.textContent = cell.getAttribute("aria-label"); };
    table.addEventListener("pointerover", tell_cell);
    table.addEventListener("focusin", tell_cell);
    roving(table, "td.cell", (from, way) => {
      if (way === "left" || way === "right") return from[way === "left" ? "previousElementSibling" : "nextElementSibling"]?.closest("td.cell");
      return from.parentElement[way === "up" ? "previousElementSibling" : "nextElementSibling"]?.cells[from.cellIndex];
    });
    box.append(make("p", { class: "quiet" }, `${map.label}: ${low}`, make("span", { class: "scale" }), String(high)),
      make("div", { class: "scroll" }, table), read);
  }

  const show = () => maps.forEach(([place, map, written]) => draw(one(place), map, written));
  const measured = data.bits.filter((each) => data.rows.some((row, at) => row.bits === each && maps.some(([, map]) => map?.rows[at])));
  if (measured.length) {
    choices(bits, measured.map((each) => [each, each]));
    bits.value = measured.at(-1); // where methods differ most
    bits.addEventListener("change", show);
    show();
  } else one("#errors").hidden = true;
}
