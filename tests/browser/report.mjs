// The report's page in a real browser: what it draws is what its facts say, at two widths, light and dark; tables sort by
// mouse and by keyboard; names of tensors stay text; nothing is asked of the network.
//
// QUANTFS_BIN=target/debug/quantfs node tests/browser/report.mjs [SOURCE [FLAGS...]]
// Without a source one is made whose names would break out of a careless page. PICTURES=DIR keeps a picture of each look.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { Browser, installed } from "./browser.mjs";

const hostile = "model.layers.1.mlp.</script><script>document.title='broken out'</script><img src=x onerror=\"document.title='broken out'\">";

/** A small source of two components, and a recipe that asks for one of them otherwise. */
function source(dir) {
  const shapes = { "lm_head.weight": [64, 128], "model.norm.weight": [128], [`${hostile}.weight`]: [128, 128] };
  for (let layer = 0; layer < 12; layer += 1) shapes[`model.layers.${layer}.mlp.up_proj.weight`] = [128, 128];
  component(dir, shapes);
  component(join(dir, "draft"), { "model.layers.0.mlp.up_proj.weight": [128, 128], "model.layers.1.mlp.up_proj.weight": [128, 128] });
  const recipe = join(work, "recipe.toml");
  writeFileSync(recipe, `spec = "ct-4bit-g32"\n[components.draft]\nspec = "ct-8bit"\n[[components.draft.rules]]\npattern = "*.1.*"\nspec = "source"\n`);
  return [dir, "--recipe", recipe, "--candidate", "ct-4bit-g32", "--candidate", "ct-8bit", "--candidate", "ct-3bit-channel", "--candidate", "bnb-nf4", "--candidate", "gptq-4bit"];
}

/** Weights of bf16 values of both signs, and their config. */
function component(dir, shapes) {
  const header = {};
  const data = [];
  for (const [name, shape] of Object.entries(shapes)) {
    const count = shape.reduce((n, side) => n * side, 1);
    const values = Uint16Array.from({ length: count }, (_, i) => new Uint16Array(new Float32Array([Math.sin(i * 1.7 + name.length) ** 3]).buffer)[1]);
    const start = data.reduce((sum, one) => sum + one.byteLength, 0);
    header[name] = { dtype: "BF16", shape, data_offsets: [start, start + count * 2] };
    data.push(Buffer.from(values.buffer));
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  mkdirSync(dir);
  writeFileSync(join(dir, "model.safetensors"), Buffer.concat([length, text, ...data]));
  writeFileSync(join(dir, "config.json"), JSON.stringify({ architectures: ["LlamaForCausalLM"], model_type: "llama", torch_dtype: "bfloat16" }));
}

const program = installed();
if (!program) {
  console.log("*** no Chromium is installed: THE REPORT'S PAGE IS NOT LOOKED AT (apt-get install chromium, or name one in CHROMIUM) ***");
  console.log("1 skipped in 0.00s");
  process.exit(process.env.QUANTFS_REQUIRE_BROWSER ? 1 : 0);
}
const work = mkdtempSync(join(tmpdir(), "quantfs-report-"));
const page = join(work, "report.html");
const given = process.argv.slice(2);
const args = ["report", ...(given.length > 0 ? given : source(join(work, "model"))), "-o", page];
const made = spawnSync(process.env.QUANTFS_BIN ?? "target/debug/quantfs", args, { encoding: "utf8" });
assert.equal(made.status, 0, made.stderr);
const pictures = process.env.PICTURES;
if (pictures) mkdirSync(pictures, { recursive: true });

const browser = new Browser(program);
const started = Date.now();
let checks = 0;
const check = (what, found, wanted) => {
  assert.deepEqual(found, wanted, what);
  checks += 1;
};
const column = (table, name) => `(() => {
  const heads = [...document.querySelectorAll("#${table} thead th")];
  const at = heads.findIndex((head) => head.textContent === "${name}");
  return { at, sort: heads[at].getAttribute("aria-sort"), cells: [...document.querySelectorAll("#${table} tbody tr")].map((row) => row.children[at].textContent) };
})()`;
// Contrast of ink and ground, as WCAG 2 defines it, of every cell; the browser itself says what colours they are.
const contrasts = `(() => {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return [...document.querySelectorAll("#heat td[style]")].map((cell) => {
    const { color, backgroundColor } = getComputedStyle(cell);
    const [a, b] = [light(color), light(backgroundColor)];
    return Math.max(a, b) / Math.min(a, b);
  });
})()`;
const click = (table, name) => browser.run(`[...document.querySelectorAll("#${table} th button")].find((button) => button.textContent === "${name}").click()`);

try {
  await browser.open(pathToFileURL(page).href);
  const facts = JSON.parse(await browser.run(`document.getElementById("facts").textContent`));
  const known = facts.candidates.filter((one) => !one.refused);
  const quantized = facts.tensors.filter((one) => one.errors);
  for (const width of [400, 1400]) {
    for (const scheme of ["light", "dark"]) {
      await browser.look(width, scheme);
      check(`${width} px: the page is as wide as the window`, await browser.run("document.documentElement.scrollWidth <= innerWidth"), true);
      check("every candidate that loses anything is a point", await browser.run(`document.querySelectorAll("#scatter .point").length`), known.filter((one) => one.loss > 0).length);
      check("charts fill their place", await browser.run(`[...document.querySelectorAll(".chart svg")].every((svg) => Math.abs(svg.viewBox.baseVal.width - svg.getBoundingClientRect().width) < 2)`), true);
      check("labels do not touch", await browser.run(`(() => {
        const boxes = [...document.querySelectorAll("#scatter .label")].map((label) => label.getBoundingClientRect());
        return boxes.every((a, i) => boxes.slice(i + 1).every((b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 4 || b.bottom <= a.top + 4));
      })()`), true);
      check("cells of the heat map can be read", (await browser.run(contrasts)).filter((ratio) => ratio < 4.5), []);
      await browser.run(`document.getElementById("candidates-details").open = ${scheme === "dark"}`);
      if (pictures) writeFileSync(join(pictures, `${width}-${scheme}.png`), await browser.picture());
    }
  }

  check("names are text", await browser.run(`[document.scripts.length, document.images.length, document.title.includes("broken")]`), [2, 0, false]);
  const full = (one) => (one.component === "" ? one.name : `${one.component}/${one.name}`);
  const names = (await browser.run(column("tensors", "Name"))).cells;
  check("every tensor is in the plan by its name", names.length, Math.min(200, facts.tensors.length));
  check("none by another", names.every((name) => facts.tensors.some((one) => full(one) === name)), true);

  const asked = await browser.run(`document.getElementById("colophon").textContent`);
  check("options are words", asked.includes("[object"), false);
  for (const dir of Object.keys(facts.options.components ?? {})) check(`those of ${dir}, too`, asked.includes(`${dir} (spec ${facts.options.components[dir].spec}`), true);
  if (given.length === 0) check("all of them", asked.includes("components: draft (spec ct-8bit-g128, rules *.1.*=source)"), true);

  // Sorting: by mouse, back, and by keyboard.
  await click("tensors", "Name");
  const up = await browser.run(column("tensors", "Name"));
  const ordered = [...facts.tensors.map(full)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  check("by name", [up.sort, up.cells], ["ascending", ordered.slice(0, 200)]);
  await browser.run(`[...document.querySelectorAll("#tensors th button")].find((button) => button.textContent === "Name").focus()`);
  await browser.press("Enter", 13, "\r");
  check("down by keyboard", (await browser.run(column("tensors", "Name"))).sort, "descending");
  await click("tensors", "Relative %");
  const worst = await browser.run(column("tensors", "Relative %"));
  const most = Math.max(...quantized.map((one) => one.errors.relative)) * 100;
  check("the worst comes first", [worst.sort, Number(worst.cells[0])], ["descending", Number(most.toPrecision(3))]);
  await browser.run(`(() => { const filter = document.getElementById("filter"); filter.value = "NORM"; filter.dispatchEvent(new Event("input")); })()`);
  check("the filter", (await browser.run(column("tensors", "Name"))).cells.length, facts.tensors.filter((one) => full(one).toLowerCase().includes("norm")).length);
  await click("candidates", "Relative %");
  check("refused candidates come last", (await browser.run(column("candidates", "Front"))).cells.slice(known.length).every((cell) => cell.startsWith("left out: ")), true);

  // The heat map and the histograms follow their drop-downs.
  const choose = (id, value) => browser.run(`(() => { const select = document.getElementById("${id}"); select.value = "${value}"; select.dispatchEvent(new Event("change")); })()`);
  const rows = `[document.querySelectorAll("#heat tbody tr").length, document.querySelectorAll("#heat tbody td").length]`;
  check("layers", await browser.run(rows), [facts.layers.length, facts.layers.length * known.length]);
  await choose("heat-by", "kinds");
  check("kinds", await browser.run(rows), [facts.kinds.length, facts.kinds.length * known.length]);
  const told = `document.getElementById("tensor-figures").textContent`;
  const drawn = `document.getElementById("errors").innerHTML`;
  check("the worst tensor is chosen", (await browser.run(told)).startsWith(full(facts.tensors[facts.histograms[0].tensor])), true);
  const before = await browser.run(drawn);
  const last = facts.histograms.length - 1;
  await choose("tensor", last);
  check("another tensor", (await browser.run(told)).startsWith(full(facts.tensors[facts.histograms[last].tensor])), true);
  check("another picture", last === 0 || (await browser.run(drawn)) !== before, true);
  const linear = await browser.run(drawn);
  await browser.run(`document.getElementById("log").click()`);
  check("counts on a log scale", (await browser.run(drawn)) !== linear, true);
  check("bars are the facts", await browser.run(`[...document.querySelectorAll("#weights .bar title")].map((title) => Number(title.textContent.split(": ")[1].replaceAll(",", "")))`), facts.histograms[last].elements);
  check("kept: as many as the facts have", await browser.run(`[...document.querySelectorAll("#kept-table tbody tr")].reduce((sum, row) => sum + Number(row.children[2].textContent), 0)`), facts.tensors.length - quantized.length);

  check("no errors", browser.errors, []);
  check("nothing is loaded", browser.asked, [pathToFileURL(page).href]);
  console.log(`${checks} passed in ${((Date.now() - started) / 1000).toFixed(2)}s`);
} finally {
  await browser.close();
  rmSync(work, { recursive: true });
}
