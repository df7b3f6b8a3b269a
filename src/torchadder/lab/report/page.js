"use strict";
{
  const { specs, shared, figures } = JSON.parse(document.getElementById("charts").textContent);
  const controls = document.getElementById("controls"); // null where one epoch has no curves
  const { first, last } = controls?.elements ?? {};
  const curves = [];

  // A run that ends earlier than another has no number for a later epoch.
  function tooltipText(value) {
    const text = String(value);
    return text === "NaN" ? "–" : text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  }

  async function draw(element) {
    const figure = figures[element.dataset.figure];
    const spec = { ...specs[figure.spec], datasets: figure.shared ? shared : figure.datasets };
    const { view } = await vegaEmbed(element, spec, {
      mode: "vega-lite",
      renderer: "svg",
      ast: true, // interprets expressions, because the policy of the page forbids eval
      actions: false,
      defaultStyle: false,
      tooltip: { disableDefaultStyle: true, sanitize: tooltipText },
    });
    if (figure.shared) {
      curves.push(view);
      view.addSignalListener("zoom", (_, dragged) => { view.dragged = dragged.epoch; });
    }
  }

  function show() {
    if (+first.value > +last.value) [first.value, last.value] = [last.value, first.value];
    controls.elements.first_shown.value = first.value;
    controls.elements.last_shown.value = last.value;
    const hidden = [...controls.querySelectorAll("[name=shown]:not(:checked)")].map((box) => box.value);
    for (const view of curves) view.signal("first", +first.value).signal("last", +last.value).signal("hidden", hidden).runAsync();
  }

  async function zoom() {
    for (const view of curves) {
      if (!view.dragged) continue;
      const [from, to] = view.dragged.map(Math.round);
      await view.signal("zoom_x", [0, 0]).runAsync(); // removes the brush before the scale changes
      view.dragged = null;
      if (to > from) [first.value, last.value] = [from, to];
      show();
    }
  }

  if (controls) {
    controls.addEventListener("input", show);
    controls.addEventListener("reset", () => setTimeout(show));
    window.addEventListener("pointerup", () => setTimeout(zoom)); // The chart must handle the event first.
    controls.hidden = false;
  }

  const theme = document.getElementById("theme");
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.style.colorScheme || (wantsDark.matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.addEventListener("click", () => {
    document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
    label();
  });
  wantsDark.addEventListener("change", label);
  theme.hidden = false;
  label();

  // A chart in a closed part has no width: it is drawn when the part opens.
  for (const part of document.querySelectorAll("details.more")) {
    part.addEventListener("toggle", () => { for (const element of part.querySelectorAll(".chart")) draw(element); }, { once: true });
  }

  (async () => {
    for (const element of document.querySelectorAll("[data-figure]")) if (!element.closest("details.more")) await draw(element);
    document.documentElement.dataset.drawn = "all";
  })();
}
