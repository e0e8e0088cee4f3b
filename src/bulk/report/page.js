"use strict";
// Draws the facts. Names in them are anybody's: they become text nodes and attribute values, never markup.
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const at = (id) => document.getElementById(id);
  const known = facts.candidates.filter((one) => !one.refused);
  const chosen = known[0];
  // A view of several schemes is no spec.
  const called = (one) => (one.mixed ? `this view (${one.spec} with exceptions)` : one.spec);

  function make(namespace, tag, attributes, children) {
    const node = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const h = (tag, attributes, ...children) => make(null, tag, attributes, children);
  const s = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);

  // Numbers as people read them.
  const dash = "\u2013";
  function bytes(n, short = false) {
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let unit = 0;
    while (n >= 999.5 && unit + 1 < units.length) [n, unit] = [n / 1000, unit + 1];
    return `${unit === 0 || short ? Number(n.toPrecision(3)) : n.toPrecision(3)} ${units[unit]}`;
  }
  const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
  const count = (n) => n.toLocaleString("en");
  function small(x, digits = 3) {
    if (x === null || x === undefined) return dash;
    if (x === 0) return "0";
    const power = Math.floor(Math.log10(Math.abs(x)));
    const text = power < -4 || power > 5 ? x.toExponential(digits - 1).replace("e-", "e\u2212").replace("e+", "e") : x.toFixed(Math.max(0, digits - 1 - power));
    return text.replace(/^-/, "\u2212");
  }
  const percent = (x, digits = 3) => small(x === null || x === undefined ? x : x * 100, digits);
  const decibel = (x) => (x === null || x === undefined ? dash : x.toFixed(1));
  const lost = (one) => (one.errors.lost > 0 ? `, ${plural(one.errors.lost, "element")} lost to NaN or infinity` : "");
  const title = (one) => `${called(one)}: ${bytes(one.totals.bytes_after)}, ${one.totals.bits_per_weight.toFixed(2)} bits per weight, relative error ${percent(one.errors.relative)} %${lost(one)}`;
  // What an option was given, lists and tables within it included.
  function words(value) {
    if (Array.isArray(value)) return value.map(words).join(" ");
    if (typeof value !== "object" || value === null) return String(value);
    const entry = ([name, inner]) => (typeof inner === "object" && !Array.isArray(inner) ? `${name} (${words(inner)})` : `${name} ${words(inner)}`);
    return Object.entries(value).map(entry).join(", ");
  }

  function header() {
    at("source").textContent = facts.source;
    document.title = `${facts.source} as ${facts.spec}: quantfs report`;
    const totals = facts.totals;
    at("lede").append("Shown as ", h("code", null, facts.spec), `: ${count(totals.quantized)} tensors quantized, ${count(totals.dense)} dense, ${count(totals.dropped)} dropped.`);
    const tile = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));
    at("totals").append(
      tile(`Size, of ${bytes(totals.bytes_before)}`, bytes(totals.bytes_after)),
      tile("Bits per weight", totals.bits_per_weight.toFixed(3)),
      tile("Relative error", `${percent(totals.errors.relative)} %`),
      tile("SQNR", `${decibel(totals.errors.sqnr_db)} dB`),
      tile("Largest difference", small(totals.errors.max)),
    );
    const { nan, infinite, lost } = totals.errors;
    const odd = nan + infinite + lost > 0 ? [`Left out of RMS, relative error, SQNR and Max: ${count(nan)} elements that are NaN, ${count(infinite)} infinite, ${count(lost)} finite ones that are shown as one of these.`] : [];
    const sample = facts.sample === null ? [] : [`Errors and histograms are from a sample: up to ${count(facts.sample)} elements of each tensor (or the least that can be encoded alone), in runs spread evenly over it.`];
    const hidden = facts.hidden.length > 0 ? [`Hidden twins: ${facts.hidden.join(", ")}`] : [];
    at("notices").append(...[...sample, ...odd, ...facts.warnings, ...hidden].map((text) => h("li", null, text)));
    const asked = Object.entries(facts.options).map(([name, value]) => `${name}: ${words(value)}`);
    const scope = facts.sample === null ? "All elements were looked at." : "Figures are from a sample.";
    at("colophon").textContent = `quantfs ${facts.version}. ${asked.join("; ")}. ${scope}`;
  }

  // A table whose columns sort. Column: {name, value(row), show(row, value), number, heading}.
  function table(node, caption, columns, rows, options = {}) {
    let sorted = { column: options.sort ?? 0, down: options.down ?? false };
    const heads = columns.map((column, i) => {
      const button = h("button", { type: "button" }, column.name);
      button.addEventListener("click", () => {
        sorted = { column: i, down: sorted.column === i ? !sorted.down : Boolean(column.number) };
        draw();
      });
      return h("th", { scope: "col", class: column.number ? "number" : null }, button);
    });
    const body = h("tbody");
    node.replaceChildren(h("caption", null, caption), h("thead", null, h("tr", null, ...heads)), body);
    function compare(a, b) {
      const { value, number } = columns[sorted.column];
      const [x, y] = [value(a), value(b)];
      // What has no value comes last, whichever way.
      if (x === null || y === null) return x === y ? 0 : x === null ? 1 : -1;
      const order = number ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return sorted.down ? -order : order;
    }
    function cell(column, row, i) {
      const value = column.value(row);
      const shown = column.show ? column.show(row, value) : value === null ? dash : String(value);
      return h(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: column.class ?? (column.number ? "number" : null) }, shown);
    }
    function draw() {
      heads.forEach((head, i) => {
        if (i === sorted.column) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      const kept = options.filter ? rows.filter(options.filter) : rows;
      const some = [...kept].sort(compare).slice(0, options.limit?.() ?? kept.length);
      body.replaceChildren(...some.map((row) => h("tr", { class: options.mark?.(row) ? "chosen" : null }, ...columns.map((column, i) => cell(column, row, i)))));
      options.drawn?.(some.length, kept.length);
    }
    draw();
    return draw;
  }

  // A name may break after its dots.
  const code = (text) => h("span", { class: "name" }, ...text.split(/(?<=[./])/).flatMap((part) => [part, h("wbr")]));
  const number = (name, value, show) => ({ name, number: true, value: (row) => value(row) ?? null, show: (row, x) => show(x) });

  // Scales and ticks.
  function nice(low, high, wanted) {
    const rough = (high - low) / wanted || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high; i += 1) ticks.push(i * step);
    return ticks;
  }
  function decades(low, high) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
      for (const n of [1, 2, 5]) {
        const tick = n * 10 ** power;
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    }
    return ticks;
  }

  function scatter() {
    const box = at("scatter");
    const points = known.filter((one) => one.loss > 0);
    if (points.length === 0) return box.replaceChildren(h("p", null, "Nothing is lost under any of them."));
    const width = Math.max(300, box.clientWidth);
    const height = Math.round(Math.min(480, Math.max(300, width * 0.45)));
    const [left, right, top, bottom] = [54, 14, 12, 44];
    const sizes = points.map((one) => one.totals.bytes_after);
    const losses = points.map((one) => one.loss * 100);
    const pad = (Math.max(...sizes) - Math.min(...sizes)) * 0.06 || Math.max(...sizes) * 0.05;
    const [x0, x1] = [Math.min(...sizes) - pad, Math.max(...sizes) + pad];
    const [y0, y1] = [Math.min(...losses) / 1.4, Math.max(...losses) * 1.4];
    const x = (size) => left + ((size - x0) / (x1 - x0)) * (width - left - right);
    const y = (loss) => top + (Math.log(y1 / loss) / Math.log(y1 / y0)) * (height - top - bottom);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Size against relative error of ${points.length} specs; the table below has the figures` });
    for (const tick of nice(x0, x1, width / 110)) {
      svg.append(s("path", { class: "grid", d: `M${x(tick)} ${top}V${height - bottom}` }), s("text", { x: x(tick), y: height - bottom + 17, "text-anchor": "middle" }, bytes(tick, true)));
    }
    for (const tick of decades(y0, y1)) {
      svg.append(s("path", { class: "grid", d: `M${left} ${y(tick)}H${width - right}` }), s("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toPrecision(2)))));
    }
    svg.append(
      s("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
      s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "bytes of all tensors"),
      s("text", { transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "relative error, with what is lost, %"),
    );
    const place = (one) => [x(one.totals.bytes_after), y(one.loss * 100)];
    const front = points.filter((one) => one.front).sort((a, b) => a.totals.bytes_after - b.totals.bytes_after);
    svg.append(s("path", { class: "step", d: front.map((one, i) => (i === 0 ? `M${place(one).join(" ")}` : `H${place(one)[0]}V${place(one)[1]}`)).join("") }));
    for (const one of [...points].sort((a, b) => Number(a.front) - Number(b.front))) {
      const [cx, cy] = place(one);
      svg.append(s("circle", { class: one.front ? "point front" : "point", cx, cy, r: 5 }, s("title", null, title(one))));
      if (one === chosen) svg.append(s("circle", { class: "ring", cx, cy, r: 9 }));
    }
    box.replaceChildren(svg);
    const rank = (one) => (one === chosen ? 0 : one.front ? 1 : 2);
    label(svg, [...points].sort((a, b) => rank(a) - rank(b)), points, place, width);
  }

  // Names beside points where there is room: they touch neither each other nor a point.
  function label(svg, named, points, place, width) {
    const taken = points.map((one) => place(one)).map(([px, py]) => ({ x: px - 7, y: py - 7, width: 14, height: 14 }));
    const apart = (a, b) => a.x + a.width < b.x || b.x + b.width < a.x || a.y + a.height < b.y || b.y + b.height < a.y;
    for (const one of named) {
      const [px, py] = place(one);
      const text = s("text", { class: one.front || one === chosen ? "label" : "label beaten" }, one.mixed ? "this view" : one.spec);
      svg.append(text);
      const wide = text.getComputedTextLength() || one.spec.length * 7;
      const spots = [[px + 11, py - 5], [px + 11, py + 14], [px - 11 - wide, py + 14], [px - 11 - wide, py - 5], [px - wide / 2, py - 13], [px - wide / 2, py + 22]];
      const fits = ([tx, ty]) => {
        const frame = { x: tx, y: ty - 11, width: wide, height: 14 };
        const inside = tx > 56 && tx + wide < width - 4 && ty > 14 && ty < svg.viewBox.baseVal.height - 48;
        return inside && taken.every((other) => apart(frame, other)) ? frame : null;
      };
      const spot = spots.find(fits);
      if (!spot) {
        text.remove();
        continue;
      }
      taken.push(fits(spot));
      text.setAttribute("x", spot[0]);
      text.setAttribute("y", spot[1]);
    }
  }

  function candidates() {
    const refused = facts.candidates.filter((one) => one.refused);
    const of = (name, value, show) => number(name, (one) => (one.refused ? null : value(one)), show);
    table(at("candidates"), `${plural(known.length, "spec")}${refused.length > 0 ? `, and ${refused.length} that this source cannot be shown as` : ""}`, [
      { name: "Spec", value: called, show: (one, name) => code(name) },
      of("Bytes", (one) => one.totals.bytes_after, (x) => (x === null ? dash : count(x))),
      of("Bits per weight", (one) => one.totals.bits_per_weight, (x) => (x === null ? dash : x.toFixed(3))),
      of("Relative %", (one) => one.errors.relative, percent),
      of("SQNR dB", (one) => one.errors.sqnr_db, decibel),
      of("Max", (one) => one.errors.max, small),
      of("Lost", (one) => one.errors.lost, (x) => (x === null ? dash : count(x))),
      of("Quantized", (one) => one.totals.quantized, (x) => (x === null ? dash : count(x))),
      { name: "Front", value: (one) => (one.refused ? "left out" : one.front ? "yes" : "no"), show: (one, value) => (one.refused ? `left out: ${one.refused}` : value), class: "wrap" },
    ], facts.candidates, { sort: 1, mark: (one) => one === chosen });
  }

  function heat() {
    const by = at("heat-by").value;
    const names = facts[by];
    const columns = [...known].sort((a, b) => a.totals.bytes_after - b.totals.bytes_after);
    const all = columns.flatMap((one) => one[by]).filter((value) => value > 0);
    const [low, high] = [Math.log(Math.min(...[1, ...all])), Math.log(Math.max(...[1e-9, ...all]))];
    const share = (value) => (high > low ? (Math.log(value) - low) / (high - low) : 1);
    const head = (one) => h("th", { scope: "col", class: one === chosen ? "spec chosen" : "spec", title: title(one) }, one.mixed ? "this view" : one.spec);
    const cell = (value) => {
      if (value === null) return h("td", { title: "not quantized, or no signal" }, dash);
      const node = h("td", null, percent(value, 2));
      const t = value > 0 ? Math.max(0, Math.min(1, share(value))) : 0;
      node.style.setProperty("--t", t.toFixed(3));
      return node;
    };
    const row = (name, i) => h("tr", null, h("th", { scope: "row", class: "name", title: name }, name), ...columns.map((one) => cell(one[by][i])));
    at("heat").replaceChildren(
      h("thead", null, h("tr", null, h("th", { scope: "col" }, by === "layers" ? "Layer" : "Kind"), ...columns.map(head))),
      h("tbody", null, ...names.map(row)),
    );
  }

  function bars(box, counts, limit, log, what) {
    const width = Math.max(280, box.clientWidth);
    const height = 210;
    const [left, right, top, bottom] = [10, 10, 6, 24];
    const scale = (n) => (log ? Math.log10(1 + n) : n);
    const most = Math.max(1e-9, ...counts.map(scale));
    const step = (width - left - right) / counts.length;
    const total = counts.reduce((sum, n) => sum + n, 0);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${what}: ${count(total)} elements between ${small(-limit)} and ${small(limit)}` });
    counts.forEach((n, i) => {
      const tall = (scale(n) / most) * (height - top - bottom);
      const [from, to] = [i, i + 1].map((edge) => ((2 * edge) / counts.length - 1) * limit);
      const attributes = { class: "bar", x: left + i * step, y: height - bottom - tall, width: Math.max(0.5, step - 1), height: tall };
      svg.append(s("rect", attributes, s("title", null, `${small(from)} to ${small(to)}: ${count(n)}`)));
    });
    svg.append(s("path", { class: "axis", d: `M${left} ${height - bottom}H${width - right}` }));
    for (const [share, anchor] of [[-1, "start"], [0, "middle"], [1, "end"]]) {
      const px = left + ((share + 1) / 2) * (width - left - right);
      svg.append(s("text", { x: px, y: height - 7, "text-anchor": anchor }, small(share * limit)));
    }
    box.replaceChildren(svg);
  }

  const full = (tensor) => (tensor.component === "" ? tensor.name : `${tensor.component}/${tensor.name}`);

  function choices() {
    const worst = (one) => `${full(facts.tensors[one.tensor])} (${percent(facts.tensors[one.tensor].errors.relative)} %)`;
    at("tensor").append(...facts.histograms.map((one, i) => h("option", { value: i }, worst(one))));
    const quantized = facts.tensors.filter((tensor) => tensor.errors).length;
    if (facts.histograms.length < quantized) at("tensor").append(h("option", { disabled: true }, `${count(quantized - facts.histograms.length)} more lose less and have none`));
  }

  function distributions() {
    const one = facts.histograms[Number(at("tensor").value)];
    if (!one) return at("tensor-figures").replaceChildren("Nothing is quantized.");
    const tensor = facts.tensors[one.tensor];
    const { elements, rms, relative, sqnr_db, max } = tensor.errors;
    at("tensor-figures").replaceChildren(code(full(tensor)), ` as ${tensor.becomes}: ${count(elements)} elements, RMS ${small(rms)}, relative ${percent(relative)} %, SQNR ${decibel(sqnr_db)} dB, max ${small(max)}.`);
    bars(at("weights"), one.elements, one.largest, at("log").checked, "Weights");
    bars(at("errors"), one.errors, one.worst, at("log").checked, "Differences");
  }

  function plan() {
    const step = 200;
    let limit = step;
    const filter = at("filter");
    const error = (key) => (tensor) => tensor.errors?.[key];
    const draw = table(at("tensors"), plural(facts.tensors.length, "tensor"), [
      { name: "Name", value: full, show: (tensor, name) => code(name), class: "long" },
      { name: "Shape", number: true, value: (tensor) => tensor.shape.reduce((n, side) => n * side, 1), show: (tensor) => tensor.shape.join(" \u00d7 ") || "scalar" },
      { name: "Becomes", value: (tensor) => tensor.becomes },
      number("Bits per weight", (tensor) => (tensor.becomes === "dropped" ? null : tensor.bits_per_weight), (x) => (x === null ? dash : x.toFixed(2))),
      number("Bytes", (tensor) => tensor.bytes_after, count),
      number("RMS", error("rms"), small),
      number("Relative %", error("relative"), percent),
      number("SQNR dB", error("sqnr_db"), decibel),
      number("Max", error("max"), small),
      { name: "Why", value: (tensor) => tensor.why, class: "wrap" },
    ], facts.tensors, {
      sort: 6,
      down: true,
      limit: () => limit,
      filter: (tensor) => full(tensor).toLowerCase().includes(filter.value.toLowerCase()),
      drawn: (shown, all) => {
        at("shown").textContent = `${count(shown)} of ${count(all)} shown`;
        at("more").hidden = shown === all;
        at("more").textContent = `Show all ${count(all)}`;
      },
    });
    filter.addEventListener("input", () => {
      limit = step;
      draw();
    });
    at("more").addEventListener("click", () => {
      limit = Infinity;
      draw();
    });
  }

  function kept() {
    const groups = new Map();
    for (const tensor of facts.tensors.filter((one) => !one.errors)) {
      const key = JSON.stringify([tensor.becomes, tensor.why]);
      const group = groups.get(key) ?? { becomes: tensor.becomes, why: tensor.why, names: [], bytes: 0 };
      group.names.push(full(tensor));
      group.bytes += tensor.bytes_after;
      groups.set(key, group);
    }
    const names = (group) => h("details", null, h("summary", null, `${count(group.names.length)} of them`), h("div", { class: "name wrap" }, group.names.slice(0, 500).join(", ") + (group.names.length > 500 ? ", \u2026" : "")));
    const show = (group) => (group.names.length === 1 ? code(group.names[0]) : names(group));
    table(at("kept-table"), groups.size === 0 ? "Everything is quantized." : plural(groups.size, "reason"), [
      { name: "Becomes", value: (group) => group.becomes },
      { name: "Why", value: (group) => group.why, show: (group, why) => why || dash, class: "wrap" },
      number("Tensors", (group) => group.names.length, count),
      number("Bytes", (group) => group.bytes, count),
      { name: "Which", value: (group) => group.names[0], show, class: "wrap" },
    ], [...groups.values()], { sort: 3, down: true });
  }

  header();
  candidates();
  heat();
  choices();
  plan();
  kept();
  at("heat-by").addEventListener("change", heat);
  at("tensor").addEventListener("change", distributions);
  at("log").addEventListener("change", distributions);
  // Charts are drawn for the width that there is.
  let width = 0;
  const redraw = () => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    scatter();
    distributions();
  };
  redraw();
  new ResizeObserver(redraw).observe(document.body);
})();
