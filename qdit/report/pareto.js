// Quality against cost: points with shapes by bits and colours by family, their error bars, and the Pareto front.
{
  const shapes = [
    "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z", "M-4.5-4.5H4.5V4.5H-4.5Z", "M0-5.5L5.5 4.5H-5.5Z", "M0 5.5L5.5-4.5H-5.5Z",
    "M0-6.2L6.2 0 0 6.2-6.2 0Z", "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
  ];
  const shape = (bits) => shapes[Math.max(0, data.bits.indexOf(bits)) % shapes.length];
  const box = one("#pareto"), [xs, ys] = [one("#pareto-x"), one("#pareto-y")];
  const costs = Object.keys(data.fronts);
  const drawn = data.metrics.filter((metric) => data.rows.some((row) => !row.full && row.values[metric]));
  let chosen = null;

  function ticks(low, high, logarithmic) {
    let found = [];
    if (logarithmic) {
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const step of [1, 2, 3, 5]) found.push(Number((step * 10 ** power).toPrecision(6)));
      found = found.filter((each) => each >= low && each <= high);
      if (found.length > 3) return found;
    }
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
    found = [];
    for (let at = Math.ceil(low / step); at * step <= high; at++) found.push(Number((at * step).toPrecision(12)));
    return found;
  }

  function scale(values, from, to, logarithmic) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const room = logarithmic ? (high / low) ** 0.06 : (high - low || Math.abs(high) || 1) * 0.06;
    [low, high] = logarithmic ? [low / room, high * room] : [low - room, high + room];
    const bend = logarithmic ? Math.log : (value) => value;
    const at = (value) => from + ((bend(value) - bend(low)) / (bend(high) - bend(low) || 1)) * (to - from);
    return { at, ticks: ticks(low, high, logarithmic) };
  }

  function label_front(svg, points, taken, width) { // beside the point, where it covers least
    for (const { row, x, y, tone } of points) {
      const wide = 6.6 * row.name.length, places = [];
      for (const dy of [-9, 17, -22, 30]) for (const dx of [-wide - 4, -wide / 2, 4]) places.push([x + dx, y + dy]);
      const cost = ([left, base]) => taken.reduce((sum, [a, b, c, d]) => sum
        + Math.max(0, Math.min(left + wide, c) - Math.max(left, a)) * Math.max(0, Math.min(base + 2, d) - Math.max(base - 11, b)),
        (left < 0 || left + wide > width || base < 24) * 1e6 + Math.abs(base - y));
      const [left, base] = places.reduce((best, each) => (cost(each) < cost(best) ? each : best));
      taken.push([left, base - 11, left + wide, base + 2]);
      svg.append(make("text", { x: left, y: base, class: `halo kind-${tone}` }, row.name));
    }
  }

  function draw() {
    const [cost, metric] = [xs.value, ys.value];
    const width = Math.max(280, box.clientWidth), height = Math.min(480, Math.max(300, width * 0.5));
    const [left, right, top, bottom] = [52, 14, 10, 42];
    const known = data.rows.map((row, at) => ({ row, at })).filter(({ row }) => row.values[cost] && row.values[metric]);
    const quantized = known.filter(({ row }) => !row.full), full = known.find(({ row }) => row.full);
    box.replaceChildren();
    if (!quantized.length) return box.append("No row has both.");
    const levels = quantized.flatMap(({ row }) => [-1, 1].map((s) => row.values[metric][0] + s * row.values[metric][1]));
    if (full) levels.push(full.row.values[metric][0]);
    const logarithmic = data.logarithmic.includes(metric) && Math.min(...levels) > 0;
    const x = scale(quantized.map(({ row }) => row.values[cost][0]), left, width - right, false);
    const y = scale(levels, height - bottom, top, logarithmic);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${data.labels[metric]} against ${data.labels[cost]}` });
    for (const tick of y.ticks) {
      svg.append(make("line", { x1: left, x2: width - right, y1: y.at(tick), y2: y.at(tick), class: "grid" }));
      svg.append(make("text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end", class: "axis" }, String(tick)));
    }
    for (const tick of x.ticks)
      svg.append(make("text", { x: x.at(tick), y: height - bottom + 16, "text-anchor": "middle", class: "axis" }, String(tick)));
    svg.append(make("text", { x: width - right, y: height - 6, "text-anchor": "end" }, data.labels[cost]));
    svg.append(make("text", { x: left + 4, y: top + 10, class: "halo" }, data.labels[metric]));
    if (full) {
      const at = y.at(full.row.values[metric][0]);
      svg.append(make("line", { x1: left, x2: width - right, y1: at, y2: at, class: "reference" }));
      svg.append(make("text", { x: width - right, y: at - 4, "text-anchor": "end", class: "axis" }, "full precision"));
    }
    const place = ({ row }) => [x.at(row.values[cost][0]), y.at(row.values[metric][0])];
    const front = (data.fronts[cost][metric] || []).map((at) => ({ row: data.rows[at], at }));
    svg.append(make("path", { class: "front", d: front.map((each, n) => { const [a, b] = place(each); return n ? `H${a}V${b}` : `M${a} ${b}`; }).join("") }));
    const points = quantized.filter(({ row }) => visible(row)).sort((a, b) => place(a)[0] - place(b)[0]);
    for (const each of points) svg.append(point(each, place(each), y, cost, metric, logarithmic));
    const taken = points.map((each) => { const [a, b] = place(each); return [a - 5, b - 5, a + 5, b + 5]; });
    label_front(svg, front.map((each) => ({ row: each.row, x: place(each)[0], y: place(each)[1], tone: each.row.kind })), taken, width);
    box.append(key(), svg);
    roving(svg, ".point", (from, way, elements) => elements[elements.indexOf(from) + (["left", "up"].includes(way) ? -1 : 1)]);
    mark();
  }

  function point({ row, at }, [a, b], y, cost, metric, logarithmic) {
    const [value, half, text] = row.values[metric];
    const ends = [value + half, logarithmic ? Math.max(value - half, value / 10) : value - half].map(y.at);
    const words = `${label(row)}: ${data.labels[metric]} ${text}, ${data.labels[cost]} ${row.values[cost][2]}`;
    const group = make("g", { class: `point kind-${row.kind}`, role: "button", "aria-label": words, "data-at": at },
      make("path", { d: `M${a} ${ends[0]}V${ends[1]}` }),
      make("path", { class: "room", d: "M-12-12H12V12H-12Z", transform: `translate(${a} ${b})` }),
      make("path", { class: "shape", d: shape(row.bits), transform: `translate(${a} ${b})` }));
    const show = () => {
      one(".tip", box)?.remove();
      const tip = make("div", { class: "tip" }, make("strong", {}, label(row)), make("br"), `${data.labels[metric]}: ${text}`, make("br"), `${data.labels[cost]}: ${row.values[cost][2]}`);
      box.append(tip);
      tip.style.left = `${Math.min(Math.max(0, a - tip.offsetWidth / 2), box.clientWidth - tip.offsetWidth)}px`;
      const above = one("svg:last-of-type", box).getBoundingClientRect().top - box.getBoundingClientRect().top + b;
      tip.style.top = `${above - tip.offsetHeight - 14 < 0 ? above + 14 : above - tip.offsetHeight - 14}px`;
    };
    const go = () => { tell("choose", at); one(data.samples.sheets[at] ? "#samples" : `#row-${at}`).scrollIntoView({ block: "start" }); };
    group.addEventListener("pointerenter", show);
    group.addEventListener("focus", show);
    group.addEventListener("pointerleave", () => one(".tip", box)?.remove());
    group.addEventListener("blur", () => one(".tip", box)?.remove());
    group.addEventListener("click", go);
    group.addEventListener("keydown", (event) => {
      if (["Enter", " "].includes(event.key)) { event.preventDefault(); go(); }
      if (event.key === "Escape") one(".tip", box)?.remove();
    });
    return group;
  }

  function key() {
    const entry = (d, kind, text) => make("span", { class: kind }, make("svg", { viewBox: "-7 -7 14 14" }, make("path", { d })), make("span", {}, text));
    const kinds = new Map(data.rows.filter((row) => !row.full).map((row) => [row.family_title, row.kind]));
    const families = kinds.size > 1 ? [...kinds].map(([title, kind]) => entry("M-6-6H6V6H-6Z", `kind-${kind}`, title)) : [];
    return make("div", { class: "key" }, ...families, ...data.bits.map((bits) => entry(shape(bits), "quiet", bits)));
  }

  const mark = () => all(".point", box).forEach((each) => each.classList.toggle("chosen", each.dataset.at === String(chosen)));
  if (costs.length && drawn.length) {
    choices(xs, costs.map((each) => [each, data.labels[each]]));
    choices(ys, drawn.map((each) => [each, data.labels[each]]));
    [xs, ys].forEach((select) => select.addEventListener("change", draw));
    listeners.filter.push(draw);
    listeners.choose.push((at) => { chosen = at; mark(); });
    let width = 0;
    new ResizeObserver(() => { if (box.clientWidth !== width) { width = box.clientWidth; draw(); } }).observe(box);
  } else one("#cost").hidden = true;
}
