"""Find what is hard to read on a page, for the tests in a browser."""

# Lists every text and line whose contrast with its background is too low.
CONTRAST = """() => {
  const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
    .getContext("2d", {willReadFrequently: true});
  const channels = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgba) => rgba.slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = channels(getComputedStyle(e).backgroundColor);
      if (found[3] === 255) return found;
    }
  };
  const ratio = (color, element) => {
    const [a, b] = [luminance(channels(color)), luminance(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  for (const details of document.querySelectorAll("details")) details.open = true;
  const texts = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("script")
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  const colors = texts.map((e) => [e, e.closest("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color]);
  const lines = [...document.querySelectorAll("svg .mark-line path")].map((e) => [e, getComputedStyle(e).stroke]);
  const low = (pairs, limit) => pairs.filter(([e, color]) => !(ratio(color, e) >= limit))
    .map(([e, color]) => `${e.tagName}.${e.className} ${e.textContent.slice(0, 30)} ${color} ${ratio(color, e)}`);
  return {checked: texts.length, lines: lines.length, low: [...low(colors, 4.5), ...low(lines, 3)]};
}"""
