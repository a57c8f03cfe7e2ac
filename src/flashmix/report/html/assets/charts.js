// Charts: drawn when they come into view, in the theme's colours, at the width there is.
"use strict";
const specs = JSON.parse(document.getElementById("specs").textContent);
const look = JSON.parse(document.getElementById("look").textContent);
const NARROW = 520;
const AXES = 55; // pixels of padding, labels and title below and above what a spec calls its height
const views = new Map();

function coloured(value) {
  if (!isDark()) return value;
  return JSON.parse(JSON.stringify(value), (_, one) =>
    typeof one === "string" && Object.hasOwn(look.dark, one) ? look.dark[one] : one);
}

function fitted(original, width, hidden, title) {
  const spec = structuredClone(original);
  const narrow = width < NARROW;
  if (narrow) spec.layer = spec.layer.filter((one) => !one.name?.startsWith("names"));
  // The buttons above a chart are its legend.
  for (const { encoding } of spec.layer) if (encoding?.color) encoding.color.legend = null;
  spec.width = Math.floor(width);
  spec.autosize = { type: "fit-x", contains: "padding" };
  spec.padding = { left: 2, top: 8, bottom: 4, right: 12 };
  spec.description = title;
  for (const param of spec.params ?? []) {
    if (param.name === "shown") param.value = param.value.filter((one) => !hidden.has(one));
  }
  return spec;
}

function hiddenSeries(figure) {
  const off = figure.querySelectorAll(".chips [aria-pressed=false]");
  return new Set([...off].map((chip) => chip.dataset.series));
}

async function draw(plot) {
  const figure = plot.closest("figure");
  const original = specs[plot.dataset.run][plot.dataset.chart];
  const title = figure.querySelector("h3").textContent;
  const caption = figure.querySelector("figcaption").textContent;
  const spec = fitted(original, plot.clientWidth, hiddenSeries(figure), `${title}. ${caption}`);
  views.get(plot)?.finalize();
  const result = await vegaEmbed(plot, coloured(spec), {
    actions: false,
    ast: true,
    config: coloured({ ...look.config, background: "transparent", legend: { disable: true } }),
    defaultStyle: false,
    renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  });
  views.set(plot, result.view);
  plot.style.minHeight = "";
  plot.dataset.width = plot.clientWidth;
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    draw(target);
  }
}, { rootMargin: "600px" });

function redraw(all) {
  for (const plot of views.keys()) {
    if (all || Math.abs(plot.clientWidth - plot.dataset.width) > 4) draw(plot);
  }
}

let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => redraw(false), 120);
});
document.addEventListener("theme", () => redraw(true));
addEventListener("beforeprint", () => {
  for (const plot of document.querySelectorAll(".plot")) if (!views.has(plot)) draw(plot);
});

for (const plot of document.querySelectorAll(".plot")) {
  const figure = plot.closest("figure");
  const { height } = specs[plot.dataset.run][plot.dataset.chart];
  // The place is kept while a chart is not drawn, so that what follows does not move.
  if (Number.isFinite(height)) plot.style.minHeight = `${height + AXES}px`;
  seen.observe(plot);
  figure.querySelector(".chips")?.addEventListener("click", (event) => {
    const chip = event.target.closest("button");
    if (!chip) return;
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    const hidden = hiddenSeries(figure);
    const chips = [...figure.querySelectorAll(".chips button")].map((one) => one.dataset.series);
    views.get(plot)?.signal("shown", chips.filter((one) => !hidden.has(one))).run();
  });
  const save = figure.querySelector("[data-do=save]");
  save.hidden = false;
  save.addEventListener("click", async () => {
    if (!views.has(plot)) await draw(plot);
    const link = document.createElement("a");
    const picture = await views.get(plot).toSVG();
    link.href = URL.createObjectURL(new Blob([picture], { type: "image/svg+xml" }));
    link.download = `${save.dataset.name}.svg`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
