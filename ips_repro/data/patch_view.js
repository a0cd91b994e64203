// A picture with patches on it (nbs/train/exploring.ipynb), drawn as SVG in pixels of the input. Hovering shows what a
// patch is, a click chooses it; a double click or Ctrl + wheel asks for a closer look, dragging for another part.
const SVG = "http://www.w3.org/2000/svg";

function add(parent, name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return parent.appendChild(made);
}

function render({ model, el }) {
  el.classList.add("ips-patch-view");
  const svg = add(el, "svg");
  const picture = add(svg, "image", { preserveAspectRatio: "none" });
  const marks = add(svg, "g"), outline = add(svg, "rect", { class: "chosen", "vector-effect": "non-scaling-stroke" });
  const label = el.appendChild(document.createElement("div"));
  let url = null, pressed = null, moved = false;

  function showPicture() {
    const [x, y, width, height] = model.get("frame"), old = url;
    url = URL.createObjectURL(new Blob([model.get("picture")]));
    for (const [key, value] of Object.entries({ x, y, width, height, href: url })) picture.setAttribute(key, value);
    svg.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
    svg.setAttribute("width", model.get("width"));
    svg.setAttribute("height", Math.round((model.get("width") * height) / width));
    picture.style.imageRendering = model.get("sharp") ? "pixelated" : "auto";
    if (old) URL.revokeObjectURL(old);
  }

  function showBoxes() {
    const boxes = model.get("boxes");
    const drawn = boxes.map(({ x, y, w, h, colour, kept }, i) => {
      const stroke = { stroke: colour, "stroke-width": kept ? 2.5 : 1, "vector-effect": "non-scaling-stroke" };
      const rect = add(marks, "rect", { x, y, width: w, height: h, "data-place": i, "data-kept": kept, ...stroke });
      rect.onpointerenter = () => { label.textContent = boxes[i].text; label.style.display = "block"; };
      rect.onpointerleave = () => { label.style.display = "none"; };
      return rect;
    });
    marks.replaceChildren(...drawn.reverse()); // the best patch on top
    label.style.display = "none";
    showChosen();
  }

  function showChosen() {
    const { x = 0, y = 0, w = 0, h = 0 } = model.get("boxes")[model.get("chosen")] || {};
    for (const [key, value] of Object.entries({ x, y, width: w, height: h })) outline.setAttribute(key, value);
  }

  const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());

  function ask(frame) {
    if (!model.get("zooms")) return;
    model.set("wanted", frame.map((v) => Math.round(v)));
    model.save_changes();
  }

  function zoom(event, factor) { // what is under the pointer stays there
    event.preventDefault();
    const [x, y, w, h] = model.get("frame"), at = place(event);
    ask([at.x - (at.x - x) * factor, at.y - (at.y - y) * factor, w * factor, h * factor]);
  }

  svg.onpointerdown = (event) => { pressed = place(event); moved = false; };
  svg.onpointermove = (event) => {
    const { left, top } = el.getBoundingClientRect();
    label.style.left = `${event.clientX - left + 14}px`;
    label.style.top = `${event.clientY - top + 14}px`;
    const at = place(event);
    moved = moved || (pressed && Math.hypot(at.x - pressed.x, at.y - pressed.y) > model.get("frame")[2] / 100);
    if (moved && model.get("zooms")) svg.style.cursor = "grabbing";
  };
  svg.onpointerup = (event) => {
    const [x, y, w, h] = model.get("frame"), at = place(event), rect = event.target.closest("rect");
    svg.style.cursor = "";
    if (moved) ask([x + pressed.x - at.x, y + pressed.y - at.y, w, h]);
    else if (rect) { model.set("chosen", Number(rect.dataset.place)); model.save_changes(); }
    pressed = null;
    moved = false;
  };
  svg.ondblclick = (event) => zoom(event, 0.5);
  function wheel(event) {
    if (event.ctrlKey || event.metaKey) zoom(event, event.deltaY < 0 ? 0.8 : 1.25);
  }
  svg.addEventListener("wheel", wheel, { passive: false });

  model.on("change:picture", showPicture);
  model.on("change:boxes", showBoxes);
  model.on("change:chosen", showChosen);
  showPicture();
  showBoxes();
  return () => { if (url) URL.revokeObjectURL(url); };
}

export default { render };
