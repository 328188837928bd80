// Boxes and clicks on the image, in its own pixels. The server draws; this only tells what was drawn.
const MOVED = 4; // screen pixels from which a press is a drag
let start = null, band = null;

const canvas = () => element.querySelector("svg[data-open]");
const size = () => ["width", "height"].map(name => Number(canvas().dataset[name]));
const place = event => {
  const point = new DOMPoint(event.clientX, event.clientY);
  return point.matrixTransform(canvas().getScreenCTM().inverse());
};
// Edges of a half-open box: pixel i covers [i - 0.5, i + 0.5].
const corners = (one, other) => {
  const edge = (axis, index) => [one[axis], other[axis]]
    .map(value => Math.min(Math.max(value + 0.5, 0), size()[index])).sort((a, b) => a - b);
  const [x0, x1] = edge("x", 0), [y0, y1] = edge("y", 1);
  return [x0, y0, x1, y1];
};
const stop = () => {
  band?.remove();
  start = band = null;
};

element.addEventListener("pointerdown", event => {
  if (!event.isPrimary || event.button !== 0 || !canvas()?.contains(event.target)) return;
  event.preventDefault();
  start = {at: place(event), x: event.clientX, y: event.clientY};
  element.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", event => {
  if (!start || !event.isPrimary) return;
  if (!band && Math.hypot(event.clientX - start.x, event.clientY - start.y) < MOVED) return;
  if (!band) {
    band = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    band.setAttribute("class", "box band");
    canvas().append(band);
  }
  const [x0, y0, x1, y1] = corners(start.at, place(event));
  const values = {x: x0 - 0.5, y: y0 - 0.5, width: x1 - x0, height: y1 - y0};
  for (const [name, value] of Object.entries(values)) band.setAttribute(name, value);
});
element.addEventListener("pointerup", event => {
  if (!start || !event.isPrimary) return;
  const {at} = start, dragged = band !== null;
  stop();
  if (!dragged) {
    const [width, height] = size();
    const inside = at.x >= -0.5 && at.y >= -0.5 && at.x < width - 0.5 && at.y < height - 0.5;
    if (inside) trigger("draw", {point: [at.x, at.y], other: event.shiftKey});
    return;
  }
  const box = corners(at, place(event));
  if (box[2] > box[0] && box[3] > box[1]) trigger("draw", {box});
});
element.addEventListener("pointercancel", stop);
document.addEventListener("keydown", event => { if (event.key === "Escape") stop(); });

// A file that is dropped anywhere on the image goes the way of the button.
element.addEventListener("dragover", event => event.preventDefault());
element.addEventListener("drop", event => {
  event.preventDefault();
  const input = document.querySelector("#side input[type=file]");
  if (!input || event.dataTransfer.files.length !== 1) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});
