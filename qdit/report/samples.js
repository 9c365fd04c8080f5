// Samples of a run on full precision's noise, which lies below them: the slider shows more or less of either.
{
  const { sheets, full, captions, without, judged } = data.samples;
  const [run, wipe, play] = [one("#run"), one("#wipe"), one("#play")];
  const shown = Object.keys(sheets).map(Number).filter((at) => at !== full);
  let frame = 0, timer = null;

  function picture(kind, sheet, sample) {
    const part = make("div", { class: kind });
    part.dataset.frames = sheet.frames;
    part.style.backgroundImage = `var(--${kind})`;
    part.style.backgroundSize = `${100 * sheet.count}% ${100 * sheet.frames}%`;
    part.style.backgroundPositionX = `${sheet.count > 1 ? (100 * sample) / (sheet.count - 1) : 0}%`;
    return part;
  }
  function tile(at, sample) {
    const own = sheets[at], under = full === null ? null : sheets[full];
    const pair = make("div", { class: own.width <= 48 ? "pair small" : "pair", role: "img",
      "aria-label": `${captions[sample] ?? `sample ${sample}`}: full precision and ${label(data.rows[at])}` });
    pair.style.aspectRatio = `${own.width} / ${own.height}`;
    if (under && sample < under.count) pair.append(picture("base", under, sample));
    pair.append(picture("own", own, sample));
    if (under) pair.append(make("div", { class: "line" }));
    const value = judged[at]?.each[sample];
    const named = captions[sample] ?? `sample ${sample}`;
    const below = make("figcaption", {}, make("span", { class: "caption", title: named }, named)); // prompts may be long
    if (value != null) below.append(make("small", {}, `${value}${/dB/.test(judged[at].label) ? " dB" : ""}`));
    return make("figure", {}, pair, below);
  }

  function show() {
    const at = Number(run.value), own = sheets[at], found = judged[at], row = data.rows[at], section = one("#samples");
    section.style.setProperty("--own", `url("${own.url}")`);
    if (full !== null) section.style.setProperty("--base", `url("${sheets[full].url}")`);
    one("#tiles").replaceChildren(...Array.from({ length: own.count }, (_, sample) => tile(at, sample)));
    const worst = (found?.worst ?? []).filter((sample) => sample < own.count).slice(0, Math.ceil(own.count / 2));
    one("#worst-title").textContent = worst.length ? `The worst ${worst.length} of these by ${found.label.replace(/ [↑↓]$/, "")}` : "";
    one("#worst").replaceChildren(...worst.map((sample) => tile(at, sample)));
    one("#worst-note").textContent = worst.length ? `The worst of all ${found.of}, by number: ${found.lowest.map(([number, value]) => `${number} (${value})`).join(", ")}. A run keeps pictures of its first samples.` : "";
    one("#command-of").replaceChildren(...(row.command ? [make("code", {}, row.command), make("button", { type: "button", class: "copy", "data-command": row.command, "aria-label": `Copy the command of ${label(row)}` }, "copy")] : []));
    step(0);
  }
  function step(by) {
    frame += by;
    for (const part of all("#samples [data-frames]")) {
      const count = Number(part.dataset.frames);
      part.style.backgroundPositionY = `${count > 1 ? (100 * (frame % count)) / (count - 1) : 0}%`;
    }
  }
  function playing(on) {
    clearInterval(timer);
    timer = on ? setInterval(step, 125, 1) : null; // eight frames a second
    play.textContent = on ? "Pause" : "Play";
  }
  const cut = () => one("#samples").style.setProperty("--cut", `${full === null ? 100 : wipe.value}%`);

  const names = without.filter((at) => !data.rows[at].full).map((at) => label(data.rows[at]));
  const note = [];
  if (full === null && shown.length) note.push("Full precision kept no pictures, so that there is nothing to compare with.");
  if (names.length && shown.length) note.push(`Without pictures, as records of earlier versions are: ${names.length > 6 ? `${names.length} rows` : names.join(", ")}. The same command with overwrite=true makes them.`);
  if (!shown.length) note.push("The records of this study have no pictures. Runs keep them; the same commands with overwrite=true make those of earlier versions.");
  one("#pictures-note").textContent = note.join(" ");
  if (shown.length) {
    for (const bits of data.bits) {
      const group = make("optgroup", { label: bits });
      group.append(...shown.filter((at) => data.rows[at].bits === bits).map((at) => make("option", { value: at }, label(data.rows[at]))));
      if (group.children.length) run.append(group);
    }
    wipe.disabled = full === null;
    wipe.value = 50;
    run.addEventListener("change", () => { show(); tell("choose", Number(run.value)); });
    wipe.addEventListener("input", cut);
    listeners.choose.push((at) => { if (sheets[at] && at !== full && String(at) !== run.value) { run.value = at; show(); } });
    if (shown.some((at) => sheets[at].frames > 1)) {
      play.hidden = false;
      play.addEventListener("click", () => playing(timer === null));
      playing(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    }
    cut();
    run.value = run.querySelector("optgroup:last-of-type option").value;
    show();
  } else all("#samples .controls").forEach((each) => { each.hidden = true; each.style.display = "none"; });
}
