// The slice viewer in the browser. It gets the voxels once and draws every image itself, at once, from typed arrays: a
// key press costs no message. Voxel (x, y, z) lies at x + X * (y + Y * z); x grows to the patient's left, y to the
// back, z to the head. Only the small traits travel between Python and here; the zoom belongs to this page alone.

const TRAITS = ["position", "window", "opacity", "plane", "show", "style"];
const PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] }; // axes: across, down, through
const SIDES = ["left", "right", "top", "bottom"];
const TALLEST = 560; // CSS pixels of an image, unless it has the screen
const LARGEST = 16; // zoom
const DASH = 5; // CSS pixels, at least
const WAITING = "Waiting for Python. If no image appears, run the cell again.";
const HINT = "Click an image; then the wheel and the arrow keys change the slice, and Ctrl + wheel zooms.";
const TOUCH_HINT = "Drag up or down: change the slice. Two fingers: zoom. Tap: go to that voxel.";
const HELP = [
  ["Click", "go to this voxel; the keys and the wheel then work in the viewer"],
  ["Wheel", "change the slice, after a click in the viewer or with Shift; otherwise scroll the page"],
  ["Ctrl, Cmd or Alt + wheel; + and -", "zoom in and out"],
  ["Double click, 0", "reset the zoom"],
  ["Drag", "up: brighter; right: less contrast; when zoomed in: move the image"],
  ["Shift + drag", "the other one: move the image, or brightness and contrast when zoomed in"],
  ["Touch", "drag up or down: change the slice; two fingers: zoom and move; tap: go to that voxel"],
  ["Arrow keys, Page up and down, Home, End", "move one slice, ten slices, to the first and to the last slice"],
  ["1, 2, 3", "axial, coronal, sagittal: the plane of the slider and the keys"],
  ["E, O", "change what is shown; switch between fill and outline"],
  ["F, R, ?", "full screen; reset everything; this help. Esc closes the help or leaves full screen"],
];
const WORDS = { truth: "reference" }; // of a choice, where it is not its own name
const RANGE_KEYS = ["ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft", "PageUp", "PageDown", "Home", "End"];

const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const within = (shape, place) => place.map((value, axis) => clip(value, 0, shape[axis] - 1));

// A value with the digits that the steps of its volume allow: further ones would be those of rounding.
const readable = (value, step) => {
  if (Number.isInteger(value)) return value;
  return Number(step < 1 ? value.toFixed(clip(Math.floor(-Math.log10(step)), 0, 20)) : value.toPrecision(5));
};
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const transform = (matrix, point) => matrix.slice(0, 3).map((row) =>
  row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);

export default () => {
  let owner, data; // one for all views of a widget: the voxels travel once
  return {
    initialize({ model }) { owner = model; },
    render({ model, el }) {
      const root = element("div", { className: "unetlib-viewer", tabIndex: 0, role: "group" }, WAITING);
      root.setAttribute("aria-label", `Slice viewer: ${model.get("title")}. Press the question mark for its keys.`);
      el.append(root);
      data ??= receive(owner);
      let viewer = null, closed = false;
      data.then((content) => { if (!closed) viewer = new Viewer(root, model, content); });
      return () => { closed = true; viewer?.close(); };
    },
  };
};

// The data

function receive(model) {
  return new Promise((resolve) => {
    const listen = (content, buffers) => {
      if (content.kind !== "data") return;
      model.off("msg:custom", listen);
      resolve(unpack(content, buffers));
    };
    model.on("msg:custom", listen);
    model.send({ kind: "ready" });
  });
}

function unpack(content, buffers) {
  const bytes = (at) => { // copied: a view may start at an odd byte
    const { buffer, byteOffset, byteLength } = buffers[at];
    return buffer.slice(byteOffset, byteOffset + byteLength);
  };
  const masks = {}, pairs = {};
  const mask = (at) => (at === null ? null : (masks[at] ??= new Uint8Array(bytes(at))));
  for (const panel of content.panels) {
    panel.voxels = new Int16Array(bytes(panel.voxels));
    panel.pair = `${panel.truth},${panel.prediction}`;
    panel.truth = mask(panel.truth);
    panel.prediction = mask(panel.prediction);
    panel.kinds = [0];
    if (panel.truth || panel.prediction) {
      Object.assign(panel, (pairs[panel.pair] ??= classify(panel, content.regions.length)));
    }
    panel.grey = new Uint8Array(65536);
    panel.strides = [1, panel.shape[0], panel.shape[0] * panel.shape[1]];
  }
  return content;
}

// The kinds of voxels: the classes that occur, 0 first. A class has one bit for each region of the reference, then one
// for each of the prediction; without named regions there is one. `classes` holds the place of each voxel among them.
function classify(panel, regions) {
  const classes = classesOf(panel, regions), place = new Uint16Array(65536);
  for (let at = 0; at < classes.length; at++) place[classes[at]] = 1;
  place[0] = 1;
  const kinds = [...place.keys()].filter((number) => place[number]);
  kinds.forEach((number, at) => { place[number] = at; });
  return { kinds, classes, counts: countKinds(panel.shape, classes, place, kinds.length) };
}

function classesOf({ voxels, truth, prediction }, regions) {
  const classes = new Uint16Array(voxels.length), most = regions ? 255 : 1, shift = Math.max(1, regions);
  if (truth) for (let at = 0; at < classes.length; at++) classes[at] = Math.min(truth[at], most);
  if (prediction) for (let at = 0; at < classes.length; at++) classes[at] |= Math.min(prediction[at], most) << shift;
  return classes;
}

// Turn classes into their places, and count each kind in every slice along each axis: counts[axis][n * slice + place].
function countKinds([X, Y, Z], classes, place, n) {
  const counts = [X, Y, Z].map((length) => new Uint32Array(n * length));
  let at = 0;
  for (let z = 0; z < Z; z++) for (let y = 0; y < Y; y++) for (let x = 0; x < X; x++, at++) {
    if (!classes[at]) continue;
    const found = classes[at] = place[classes[at]];
    counts[0][n * x + found]++;
    counts[1][n * y + found]++;
    counts[2][n * z + found]++;
  }
  return counts;
}

// The elements

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const labelled = (text, control) => element("label", {}, element("span", {}, text), control);

function select(name, label, choices) {
  const options = choices.map((value) => element("option", { value }, WORDS[value] ?? value));
  return labelled(label, element("select", { className: `uv-${name}`, title: label }, ...options));
}

function button(name, text, title) {
  return element("button", { type: "button", className: `uv-${name}`, title, ariaLabel: title }, text);
}

function makeBar({ plane, show, style }, title) {
  return element("div", { className: "uv-bar" },
    element("strong", { className: "uv-title", title }, title),
    select("plane-select", "Plane", plane), select("show", "Show", show), select("style", "Style", style),
    labelled("Opacity", element("input", { type: "range", className: "uv-opacity", min: 0, max: 1, step: 0.05 })),
    element("span", { className: "uv-buttons" },
      button("out", "−", "Zoom out"), button("in", "+", "Zoom in"), button("reset", "Reset", "Reset everything"),
      button("full", "Full screen", "Full screen"), button("keys", "?", "Keys and gestures")));
}

function makeHelp() {
  const lines = HELP.map(([keys, does]) => element("div", {}, element("b", {}, keys), element("span", {}, does)));
  return element("div", { className: "uv-help", hidden: true }, ...lines);
}

function makeSteps() {
  return element("div", { className: "uv-steps" },
    element("input", { type: "range", className: "uv-slice", min: 0, step: 1, ariaLabel: "Slice" }),
    element("div", { className: "uv-strip-box" },
      element("canvas", { className: "uv-strip", role: "img" }), element("div", { className: "uv-mark" })));
}

// Where the millimetres of the readout begin and which way they grow.
function originNote({ origin, name }, many) {
  const voxel = origin.map((value) => Number(value.toFixed(1))).join(", ") + (many ? ` of ${name}` : "");
  return `x, y, z in mm grow to the patient's right, front and top; the origin is voxel ${voxel}`;
}

function makeControls(root, { choices, notes, panels }, title) {
  const hint = matchMedia("(pointer: coarse)").matches ? TOUCH_HINT : HINT;
  const lines = [originNote(panels[0], panels.length > 1), ...notes];
  root.replaceChildren(
    makeBar(choices, title), makeHelp(), element("div", { className: "uv-pictures" }), makeSteps(),
    element("div", { className: "uv-readout", ariaLive: "polite" }),
    element("div", { className: "uv-foot" },
      element("div", { className: "uv-legend" }), element("div", { className: "uv-hint" }, hint)),
    element("div", { className: "uv-notes" }, ...lines.map((note) => element("span", { className: "uv-note" }, note))));
  return (name) => root.querySelector(`.uv-${name}`);
}

// Colours

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

const belongs = (number, { mask, value }) => (number & mask) === value;

// The mean colour of the layers that a class belongs to, with named regions that of the last one, or null.
function classColour(layers, number, named) {
  const own = layers.filter((layer) => belongs(number, layer)).map(({ colour }) => rgb(colour));
  const mine = named ? own.slice(-1) : own;
  return mine.length ? [0, 1, 2].map((i) => sum(mine.map((colour) => colour[i])) / mine.length) : null;
}

// The colour of each kind (high bits) at each grey level (low 8 bits), as the bytes red, green, blue, alpha.
function colourTable(kinds, layers, opacity, named) {
  const table = new Uint32Array(kinds.length * 256), bytes = new Uint8ClampedArray(table.buffer);
  for (let kind = 0; kind < kinds.length; kind++) {
    const colour = classColour(layers, kinds[kind], named);
    for (let level = 0; level < 256; level++) {
      const mixed = colour ? colour.map((part) => level + opacity * (part - level)) : [level, level, level];
      bytes.set([...mixed, 255], 4 * (256 * kind + level));
    }
  }
  return table;
}

// The grey level of each stored number.
function setGrey({ grey, slope, intercept }, [low, high]) {
  for (let stored = -32768; stored < 32768; stored++) {
    grey[stored + 32768] = clip((255 * (slope * stored + intercept - low)) / (high - low), 0, 255);
  }
}

// One image: a plane of a volume on its canvas

class Picture {
  constructor(panel, volume, plane, letters) {
    this.panel = panel;
    this.letters = letters;
    this.canvas = element("canvas", { className: "uv-plane", role: "img" });
    this.canvas.dataset.volume = volume;
    this.caption = element("figcaption");
    this.marks = SIDES.map((side) => {
      const mark = element("span", { className: "uv-letter" });
      mark.dataset.side = side;
      return mark;
    });
    const around = element("div", { className: "uv-letters" }, ...this.marks);
    this.frame = element("div", { className: "uv-frame" }, this.canvas, around);
    this.figure = element("figure", {}, this.frame, this.caption);
    this.turn(plane);
  }

  // Show another plane.
  turn(plane) {
    const { shape, spacing, box } = this.panel, [across, down] = PLANES[plane];
    this.plane = this.canvas.dataset.plane = plane;
    this.up = plane !== "axial"; // rows count from the top, but z grows to the head
    [this.width, this.height] = [shape[across], shape[down]];
    this.cut = [across, down].map((axis) => box[1][axis] - box[0][axis]); // voxels, seen at zoom 1
    this.extent = [this.cut[0] * spacing[across], this.cut[1] * spacing[down]]; // mm
    this.pixels = new ImageData(this.width, this.height);
    this.colours = new Uint32Array(this.pixels.data.buffer);
    this.classes = new Uint16Array(this.width * this.height);
    this.sheet = element("canvas", { width: this.width, height: this.height });
    this.marks.forEach((mark, side) => { mark.textContent = this.letters[plane][side]; });
  }

  // Take the room for the image; `scale`: CSS pixels a millimetre at zoom 1, at which the box just fits.
  resize(scale, width, height) {
    this.base = this.extent.map((side) => Math.max(1, Math.floor(side * scale)));
    this.limit = [width, height].map((side, i) => Math.max(Math.floor(side), this.base[i]));
    this.figure.style.height = `${Math.ceil(height)}px`;
    this.size = null;
  }

  // Let the canvas grow with the image, into the room that there is.
  grow(zoom) {
    const size = this.base.map((side, i) => Math.min(this.limit[i], Math.round(side * Math.max(1, zoom))));
    if (same(size, this.size)) return;
    this.size = size;
    Object.assign(this.frame.style, { width: `${size[0]}px`, height: `${size[1]}px` });
    [this.canvas.width, this.canvas.height] = size.map((side) => Math.round(side * devicePixelRatio));
  }

  row(index) { return this.up ? this.height - 1 - index : index; }

  // Put the middle of the canvas at a place (3,) of the volume, in voxels.
  place(middle, zoom) {
    this.grow(zoom);
    const { canvas, cut, base } = this, [across, down] = PLANES[this.plane];
    [this.sx, this.sy] = cut.map((n, i) => (Math.round(base[i] * devicePixelRatio) / n) * zoom); // pixels a voxel
    this.left = canvas.width / 2 - (middle[across] + 0.5) * this.sx;
    this.top = canvas.height / 2 - (this.row(middle[down]) + 0.5) * this.sy;
  }

  // Return a point of the page as a place (3,) in the slice at `at`, in voxels and parts of them.
  placeAt({ clientX, clientY }, at) {
    const box = this.canvas.getBoundingClientRect(), [across, down] = PLANES[this.plane], place = [...at];
    place[across] = (((clientX - box.left) * this.canvas.width) / box.width - this.left) / this.sx - 0.5;
    place[down] = this.row((((clientY - box.top) * this.canvas.height) / box.height - this.top) / this.sy - 0.5);
    return place;
  }

  voxelAt(point, at) { return within(this.panel.shape, this.placeAt(point, at).map(Math.round)); }

  // Return the middle of the view after the image was moved by (dx, dy) CSS pixels.
  moved(middle, dx, dy) {
    const ratio = this.canvas.width / this.canvas.getBoundingClientRect().width, place = [...middle];
    const [across, down] = PLANES[this.plane];
    place[across] -= (dx * ratio) / this.sx;
    place[down] += ((this.up ? 1 : -1) * dy * ratio) / this.sy;
    return place;
  }

  // Fill the sheet's pixels from one slice, and `classes` with those of the slice.
  paint(index) {
    const { panel, width, height, up, colours, classes } = this;
    const { voxels, grey, strides, table } = panel, marked = panel.classes;
    const [across, down, through] = PLANES[this.plane].map((axis) => strides[axis]);
    for (let row = 0, pixel = 0; row < height; row++) {
      let at = index * through + (up ? height - 1 - row : row) * down;
      for (let column = 0; column < width; column++, pixel++, at += across) {
        const found = marked ? marked[at] : 0;
        classes[pixel] = found;
        colours[pixel] = table[(found << 8) | grey[voxels[at] + 32768]];
      }
    }
    this.sheet.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  // Draw the sheet, the borders and the cross at voxel `at`.
  draw(at, borders, opacity) {
    const { canvas, sx, sy } = this, context = canvas.getContext("2d"), [across, down] = PLANES[this.plane];
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = Math.min(sx, sy) < 3; // from there on a voxel is large enough to be seen as one
    context.drawImage(this.sheet, this.left, this.top, this.width * sx, this.height * sy);
    context.globalAlpha = Math.min(1, 2 * opacity);
    borders.forEach((border) => this.drawBorder(context, border));
    context.globalAlpha = 1;
    drawCross(context, this.left + (at[across] + 0.5) * sx, this.top + (this.row(at[down]) + 0.5) * sy);
  }

  drawBorder(context, { colour, path }) {
    const placed = new Path2D();
    placed.addPath(path, { a: this.sx, d: this.sy, e: this.left, f: this.top });
    Object.assign(context, { strokeStyle: colour, lineWidth: thickness(), lineCap: "square" });
    context.stroke(placed);
  }
}

const thickness = () => 1.5 * devicePixelRatio;

function drawCross(context, x, y) { // open in the middle, so that the voxel is seen
  const { width, height } = context.canvas, gap = 9 * devicePixelRatio;
  const line = Math.max(1, Math.round(devicePixelRatio));
  const [left, top] = [Math.round(x - line / 2), Math.round(y - line / 2)];
  context.fillStyle = "rgba(255, 255, 255, 0.45)";
  context.fillRect(left, 0, line, Math.max(0, y - gap));
  context.fillRect(left, y + gap, line, Math.max(0, height - y - gap));
  context.fillRect(0, top, Math.max(0, x - gap), line);
  context.fillRect(x + gap, top, Math.max(0, width - x - gap), line);
}

// The borders of the layers in an image, in voxels: as lines they hide none. Each lies (dx, dy) inside its layer, so
// that those of two neighbours are seen beside each other. A dashed one has every other `dash` voxels.
function borders(picture, layers, dx, dy, dash) {
  const { width, height, classes } = picture, found = layers.map((layer) => border(layer, picture.panel.kinds, dash));
  for (let row = 0, pixel = 0; row < height; row++) for (let column = 0; column < width; column++, pixel++) {
    const own = classes[pixel], left = column ? classes[pixel - 1] : 0, above = row ? classes[pixel - width] : 0;
    const last = own && (column === width - 1 || row === height - 1);
    if (own === left && own === above && !last) continue;
    for (const { inside, line } of found) {
      const x = column + (inside[own] ? dx : -dx), y = row + (inside[own] ? dy : -dy);
      if (inside[own] !== inside[left]) line(row, x, row, x, row + 1);
      if (inside[own] !== inside[above]) line(column, column, y, column + 1, y);
      if (inside[own] && column === width - 1) line(row, width - dx, row, width - dx, row + 1);
      if (inside[own] && row === height - 1) line(column, column, height - dy, column + 1, height - dy);
    }
  }
  return found;
}

function border({ colour, dashed, ...layer }, kinds, dash) {
  const path = new Path2D(), inside = kinds.map((number) => belongs(number, layer));
  const line = (along, x1, y1, x2, y2) => {
    if (dashed && Math.floor(along / dash) % 2) return;
    path.moveTo(x1, y1);
    path.lineTo(x2, y2);
  };
  return { colour, path, inside, line };
}

// The viewer: traits, zoom, and what is drawn from them

class Viewer {
  constructor(root, model, content) {
    Object.assign(this, { root, model, content, panels: content.panels, first: content.panels[0] });
    this.many = this.panels.length > 1;
    this.named = content.regions.length > 0;
    this.find = makeControls(root, content, model.get("title"));
    this.state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    this.view = this.home();
    this.pictures = this.makePictures();
    this.find("pictures").append(...this.pictures.map((picture) => picture.figure));
    this.frames = this.room = 0;
    this.hover = this.waiting = null;
    this.done = {}; // what each part was drawn from last: nothing is drawn twice
    this.controls = new Controls(this);
    this.input = new Input(this);
    this.heard = TRAITS.map((name) => [`change:${name}`, () => this.take({ [name]: model.get(name) })]);
    this.heard.forEach(([event, callback]) => model.on(event, callback));
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.find("pictures"));
    this.fit();
  }

  makePictures() {
    const shown = this.many
      ? this.panels.map((panel) => [panel, this.state.plane])
      : this.content.choices.plane.map((plane) => [this.first, plane]);
    return shown.map(([panel, plane]) =>
      new Picture(panel, this.panels.indexOf(panel), plane, this.content.letters));
  }

  close() {
    this.observer.disconnect();
    this.input.close();
    this.heard.forEach(([event, callback]) => this.model.off(event, callback));
  }

  get axis() { return PLANES[this.state.plane][2]; }

  // A place in the first volume as one in a panel, in voxels, and back.
  place(panel, at) { return panel === this.first ? at : transform(panel.link, at); }
  back(panel, at) { return panel === this.first ? at : transform(panel.back, at); }

  voxel(panel, at = this.state.position) { return within(panel.shape, this.place(panel, at).map(Math.round)); }

  windowOf(panel) {
    const [low, high] = this.first.window, [own, top] = panel.window;
    return this.state.window.map((value) => own + ((value - low) * (top - own)) / (high - low));
  }

  // What is drawn in a panel: where one of its masks is missing there are no errors, only the other mask.
  layersOf({ truth, prediction }) {
    const { layers } = this.content, { show } = this.state, [kind, region] = show.split(/: (.*)/s);
    const alone = truth && !prediction ? "truth" : prediction && !truth ? "prediction" : show;
    return kind !== "errors" || alone === show ? layers[show]
      : layers[alone].filter(({ name }) => !region || name === region);
  }

  // Of two masks of named regions only the prediction is filled: the reference is seen as lines above it.
  isLine({ of }) {
    const { show, style } = this.state;
    return style === "outline" || (this.named && show === "both" && of === "truth");
  }

  filled(panel) { return this.layersOf(panel).filter((layer) => !this.isLine(layer)); }

  outlined(panel) {
    return this.layersOf(panel).filter((layer) => this.isLine(layer))
      .map((layer) => ({ ...layer, dashed: this.named && layer.of === "prediction" }));
  }

  // True when what a part depends on has changed since it was drawn.
  stale(part, ...on) {
    const key = JSON.stringify(on), before = this.done[part];
    this.done[part] = key;
    return key !== before;
  }

  draw() {
    if (this.many && this.stale("plane", this.state.plane)) {
      this.pictures.forEach((picture) => picture.turn(this.state.plane));
      this.done = { plane: this.done.plane };
    }
    if (!this.room) return; // nothing can be seen yet: the observer calls when there is room
    if (this.stale("size", this.room, this.tall, devicePixelRatio, this.many && this.state.plane)) this.arrange();
    this.colour();
    this.pictures.forEach((picture, number) => this.drawPicture(picture, number));
    this.controls.draw();
    this.report();
  }

  colour() {
    const { window, show, style, opacity } = this.state;
    if (this.stale("window", window)) this.panels.forEach((panel) => setGrey(panel, this.windowOf(panel)));
    if (!this.stale("table", show, style, opacity)) return;
    for (const panel of this.panels) panel.table = colourTable(panel.kinds, this.filled(panel), opacity, this.named);
  }

  // Give each image its size: all in one scale, as tall as the tallest, as large as there is room.
  arrange() {
    const count = this.pictures.length;
    const usual = Math.ceil(count / clip(Math.floor(this.room / 170), 1, count));
    const rows = this.tall ? [...Array(count).keys()].map((row) => row + 1) : [usual];
    const best = rows.map((row) => this.layout(row)).reduce((a, b) => (b.scale > a.scale ? b : a));
    this.find("pictures").style.gridTemplateColumns = `repeat(${best.columns}, 1fr)`;
    const tallest = Math.max(...this.pictures.map(({ extent }) => extent[1] * best.scale));
    const height = this.tall ? best.height : tallest;
    this.pictures.forEach((picture) => picture.resize(best.scale, best.width, height));
  }

  layout(rows) {
    const columns = Math.ceil(this.pictures.length / rows);
    const width = (this.room - 4 * (columns - 1)) / columns;
    const height = this.tall ? (this.tall - 4 * (rows - 1)) / rows - 1 : TALLEST;
    const scales = this.pictures.map(({ extent: [w, h] }) => Math.min(width / w, height / h));
    return { columns, width, height, scale: Math.min(...scales) };
  }

  drawPicture(picture, number) {
    const { panel, plane } = picture, through = PLANES[plane][2], at = this.voxel(panel);
    picture.place(this.place(panel, this.view.centre), this.view.zoom);
    const { sx, sy } = picture, lines = this.outlined(panel);
    if (this.stale(`slice ${number}`, plane, at[through], { ...this.state, position: 0 })) {
      picture.paint(at[through]);
      this.caption(picture, at[through]);
      this.done[`borders ${number}`] = null;
    }
    if (lines.length && this.stale(`borders ${number}`, sx, sy)) {
      const [dx, dy] = [sx, sy].map((size) => thickness() / 2 / size), dash = Math.ceil((DASH * devicePixelRatio) / sx);
      picture.borders = panel.classes ? borders(picture, lines, dx, dy, dash) : [];
    }
    picture.draw(at, lines.length ? picture.borders : [], this.state.opacity);
  }

  caption({ panel, plane, caption, canvas }, index) {
    const through = PLANES[plane][2];
    caption.textContent = `${this.many ? panel.name : plane} · ${"xyz"[through]} ${index}`;
    canvas.ariaLabel = `${this.many ? `${panel.name}, ` : ""}${plane} slice ${index} of ${panel.shape[through]}`;
  }

  // Say on the element what is shown, for whoever waits for it.
  report() {
    const { root, view, state } = this;
    root.dataset.zoom = Number(view.zoom.toFixed(4));
    root.dataset.centre = view.centre.map((value) => Number(value.toFixed(2)));
    root.classList.toggle("uv-zoomed", view.zoom > 1);
    if (same(this.shown, state)) return;
    this.shown = { ...state };
    root.dataset.position = state.position;
    root.dataset.ready = "1";
    root.dataset.frames = ++this.frames;
  }

  // Take new values of traits and draw them, unless nothing is new.
  take(news) {
    if (news.position) news.position = within(this.first.shape, news.position);
    const fresh = Object.keys(news).filter((name) => !same(news[name], this.state[name]));
    if (!fresh.length) return [];
    for (const name of fresh) this.state[name] = news[name];
    if (fresh.includes("position")) this.follow();
    this.draw();
    return fresh;
  }

  // The same for what a person does; Python hears of it at most once a frame.
  act(news) {
    const fresh = this.take({ ...news });
    if (!fresh.length) return;
    if (!this.waiting) requestAnimationFrame(() => this.send());
    this.waiting = new Set([...(this.waiting ?? []), ...fresh]);
  }

  send() {
    const names = this.waiting;
    this.waiting = null;
    names.forEach((name) => this.model.set(name, this.state[name]));
    this.model.save_changes();
  }

  goto(axis, index) {
    this.act({ position: this.state.position.map((value, a) => (a === axis ? index : value)) });
  }

  step(axis, by) { this.goto(axis, this.state.position[axis] + by); }

  // Go to a voxel of a panel.
  visit(panel, at) { this.act({ position: this.back(panel, at).map(Math.round) }); }

  reset() {
    this.view = this.home();
    this.act(this.content.start);
    this.draw();
  }

  // Zoom: all planes show the same box around `centre`, in voxels of the first volume, `zoom` times enlarged

  home() {
    const [low, high] = this.first.box;
    return { zoom: 1, centre: low.map((value, axis) => (value + high[axis]) / 2) };
  }

  look(view) {
    this.view = view;
    this.draw();
  }

  // The zoom at which the whole first volume is seen.
  get smallest() {
    const [low, high] = this.first.box, { centre } = this.home();
    return Math.min(...this.first.shape.map((length, axis) =>
      (high[axis] - low[axis]) / 2 / Math.max(centre[axis] + 0.5, length - 0.5 - centre[axis])));
  }

  // Enlarge by a factor; what lies at `fixed`, in voxels of the first volume, stays where it is seen.
  zoomBy(factor, fixed = this.state.position) {
    const { zoom, centre } = this.view;
    const next = clip(zoom * factor, this.smallest, LARGEST);
    if (next < 1.02) return this.look({ ...this.home(), zoom: next > 0.98 ? 1 : next });
    const moved = centre.map((value, axis) => fixed[axis] + ((value - fixed[axis]) * zoom) / next);
    this.look({ zoom: next, centre: within(this.first.shape, moved) });
  }

  zoomAt(picture, factor, point) {
    const { panel } = picture, fixed = picture.placeAt(point, this.place(panel, this.view.centre));
    this.zoomBy(factor, this.back(panel, fixed));
  }

  // Move a view by (dx, dy) CSS pixels of an image.
  pan(picture, view, dx, dy) {
    if (view.zoom <= 1) return;
    const { panel } = picture, moved = picture.moved(this.place(panel, view.centre), dx, dy);
    this.look({ ...view, centre: within(this.first.shape, this.back(panel, moved)) });
  }

  // Keep the cross in view.
  follow() {
    const { view: { zoom, centre }, state: { position } } = this, reach = [Infinity, Infinity, Infinity];
    if (zoom <= 1) return;
    for (const { plane, canvas, sx, sy } of this.pictures.filter(({ panel }) => panel === this.first)) {
      const [across, down] = PLANES[plane];
      reach[across] = Math.min(reach[across], canvas.width / 2 / sx);
      reach[down] = Math.min(reach[down], canvas.height / 2 / sy);
    }
    const near = (value, axis) => Math.abs(position[axis] - value) < reach[axis];
    this.view = { zoom, centre: centre.map((value, axis) => (near(value, axis) ? value : position[axis])) };
  }

  fit() {
    const box = this.find("pictures");
    this.room = box.clientWidth;
    this.tall = document.fullscreenElement === this.root ? box.clientHeight : 0;
    this.root.classList.toggle("uv-narrow", this.room < 640);
    this.root.classList.toggle("uv-wordy", this.named && this.room < 960);
    this.draw();
  }

  // The window after a drag: to the right wider, up brighter; the default width is 250 pixels.
  dragWindow([low, high], dx, dy) {
    const unit = (this.first.window[1] - this.first.window[0]) / 250;
    const width = Math.max(high - low + dx * unit, unit), level = (low + high) / 2 + dy * unit;
    this.act({ window: [level - width / 2, level + width / 2] });
  }
}

// What stands around the images: bar, slider, strip, legend and readout

class Controls {
  constructor(viewer) { Object.assign(this, { viewer, find: viewer.find }); }

  draw() {
    const { viewer, find } = this, { plane, show, style, opacity, position } = viewer.state;
    const index = position[viewer.axis], n = viewer.first.shape[viewer.axis], slider = find("slice");
    if (viewer.stale("controls", plane, show, style, opacity)) {
      slider.max = n - 1;
      Object.entries({ "plane-select": plane, show, style, opacity })
        .forEach(([name, value]) => { find(name).value = value; });
      find("opacity").ariaValueText = `${Math.round(100 * opacity)} percent`;
    }
    slider.value = index;
    slider.ariaValueText = `${plane} slice ${index} of ${n}`;
    find("mark").style.left = `${(100 * (index + 0.5)) / n}%`;
    if (viewer.stale("legend", show, style)) find("legend").replaceChildren(...this.legend());
    if (viewer.stale("strip", plane, show, viewer.room, devicePixelRatio)) this.drawStrip();
    this.drawReadout();
  }

  legend() {
    const { viewer } = this, { layers } = viewer.content, { show, style } = viewer.state;
    const shown = viewer.panels.flatMap((panel) => viewer.layersOf(panel));
    const entries = new Map(shown.map(({ name, colour }) => [name, colour]));
    if (viewer.named) return [...this.swatches(entries), ...this.sources(shown)];
    if (show === "both" && style === "fill") entries.set("in both", `rgb(${classColour(layers.both, 3)})`);
    return this.swatches(entries);
  }

  swatches(entries) {
    return [...entries].map(([name, colour]) => {
      const swatch = element("i");
      swatch.style.background = colour;
      return element("span", {}, swatch, name);
    });
  }

  // Which of two masks is filled, and which has which line.
  sources(shown) {
    const first = ["truth", "prediction"].map((source) => shown.find(({ of }) => of === source));
    if (!first.every(Boolean)) return [];
    return first.map((layer) => {
      const className = this.viewer.isLine(layer) ? `uv-line-${layer.of}` : "uv-filled";
      return element("span", {}, element("i", { className }), WORDS[layer.of] ?? layer.of);
    });
  }

  // The strip has one row for each pair of masks, and one bar for each slice of the first volume.
  drawStrip() {
    const { viewer } = this, panels = viewer.panels.filter(({ counts }) => counts);
    const rows = [...new Map(panels.map((panel) => [panel.pair, panel])).values()];
    const strip = this.find("strip"), n = viewer.first.shape[viewer.axis], seen = [];
    strip.style.height = `${Math.max(24, 16 * rows.length)}px`;
    strip.width = Math.round(strip.clientWidth * devicePixelRatio);
    strip.height = Math.round(parseFloat(strip.style.height) * devicePixelRatio);
    const tall = strip.height / Math.max(1, rows.length);
    rows.forEach((panel, row) => seen.push(...this.drawBars(strip, panel, (row + 1) * tall, tall)));
    strip.ariaLabel = seen.length
      ? `What is shown lies in slices ${Math.min(...seen)} to ${Math.max(...seen)} of ${n}; click to go there`
      : "What is shown lies in no slice";
  }

  // Draw the bars of a panel, which stand on `bottom`, and return the slices that have one.
  drawBars(strip, panel, bottom, tall) {
    const { viewer } = this, n = viewer.first.shape[viewer.axis];
    const context = strip.getContext("2d"), least = devicePixelRatio, groups = this.barGroups(panel);
    const bars = Array.from({ length: n }, (_, slice) => this.countsAt(panel, slice, groups));
    const most = Math.max(1, ...bars.map(sum));
    bars.forEach((bar, slice) => {
      let foot = bottom;
      bar.forEach((count, k) => {
        if (!count) return;
        const part = Math.max(least, (count / most) * (tall - 3 * least));
        context.fillStyle = `rgb(${groups[k].colour})`;
        context.fillRect((slice * strip.width) / n, foot - part, Math.max(strip.width / n - 0.5, 1), part);
        foot -= part;
      });
    });
    return [...bars.keys()].filter((slice) => sum(bars[slice]));
  }

  // What the bars of a panel consist of: a kind of voxel each, or with named regions all kinds of one colour.
  barGroups(panel) {
    const { viewer } = this, { named } = viewer, layers = viewer.layersOf(panel), groups = new Map();
    panel.kinds.forEach((number, kind) => {
      const colour = classColour(layers, number, named), key = named ? String(colour) : kind;
      if (colour) groups.set(key, { colour, kinds: [...(groups.get(key)?.kinds ?? []), kind] });
    });
    return [...groups.values()];
  }

  // How many voxels of each group a panel has in the slice that belongs to a slice of the first volume.
  countsAt(panel, slice, groups) {
    const { viewer } = this, through = viewer.axis;
    const at = viewer.state.position.map((value, axis) => (axis === through ? slice : value));
    const first = panel.kinds.length * viewer.voxel(panel, at)[through];
    return groups.map(({ kinds }) => sum(kinds.map((kind) => panel.counts[through][first + kind])));
  }

  // A label of a mask, or the names of the regions that a voxel lies in.
  label(value) {
    const { named, content: { regions } } = this.viewer;
    return named ? regions.filter((_, k) => value & (1 << k)).join(", ") || "none" : value;
  }

  // Describe the voxel under the pointer, else the one at the position.
  drawReadout() {
    const { viewer } = this, { hover } = viewer, panel = hover ? hover.picture.panel : viewer.first;
    const at = hover ? hover.picture.voxelAt(hover, viewer.voxel(panel)) : viewer.voxel(panel);
    const here = sum(at.map((index, axis) => index * panel.strides[axis]));
    const value = panel.slope * panel.voxels[here] + panel.intercept;
    const words = {
      name: viewer.many && panel.name,
      value: `value ${readable(value, panel.slope)}`,
      truth: panel.truth && `reference ${this.label(panel.truth[here])}`,
      prediction: panel.prediction && `prediction ${this.label(panel.prediction[here])}`,
      voxel: `voxel ${at.join(", ")}`,
      mm: `${transform(panel.affine, at).map((side, axis) => `${"xyz"[axis]} ${signed(side)}`).join(" ")} mm`,
      zoom: viewer.view.zoom !== 1 && `zoom ${viewer.view.zoom.toFixed(1)}`,
    };
    this.find("readout").replaceChildren(...Object.entries(words).filter(([, text]) => text)
      .flatMap(([name, text]) => [element("span", { className: `uv-${name}` }, text), " "]));
  }
}

function signed(number) {
  const text = number.toFixed(1);
  return Number(text) < 0 ? text : `+${text.replace("-", "")}`; // no "-0.0"
}

// What a person does with buttons, keys and the wheel

class Input {
  constructor(viewer) {
    Object.assign(this, { viewer, find: viewer.find, root: viewer.root, turned: 0 });
    viewer.pictures.forEach((picture) => new Gestures(viewer, this, picture));
    this.listenToControls();
    this.find("steps").addEventListener("wheel", (event) => this.wheel(event, viewer.axis), { passive: false });
    this.press = (event) => this.pressed(event);
    window.addEventListener("keydown", this.press, true); // before JupyterLab, which listens on the document
  }

  close() { window.removeEventListener("keydown", this.press, true); }

  listenToControls() {
    const { viewer, find } = this, on = (name, event, callback) => find(name).addEventListener(event, callback);
    on("slice", "input", (event) => viewer.goto(viewer.axis, Number(event.target.value)));
    on("opacity", "input", (event) => viewer.act({ opacity: Number(event.target.value) }));
    on("plane-select", "change", (event) => viewer.act({ plane: event.target.value }));
    on("show", "change", (event) => viewer.act({ show: event.target.value }));
    on("style", "change", (event) => viewer.act({ style: event.target.value }));
    on("in", "click", () => viewer.zoomBy(1.5));
    on("out", "click", () => viewer.zoomBy(1 / 1.5));
    on("reset", "click", () => viewer.reset());
    on("keys", "click", () => this.toggleHelp());
    on("full", "click", () => this.toggleFullscreen());
    on("strip", "pointerdown", (event) => this.jump(event));
    find("full").hidden = !document.fullscreenEnabled;
  }

  jump(event) {
    const { viewer } = this, { left, width } = this.find("strip").getBoundingClientRect();
    viewer.goto(viewer.axis, Math.floor(((event.clientX - left) / width) * viewer.first.shape[viewer.axis]));
    this.find("slice").focus({ preventScroll: true });
    event.preventDefault();
  }

  // Only keys that the viewer or one of its controls uses are kept from the page around it.
  pressed(event) {
    if (!event.composedPath().includes(this.root) || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.shiftKey && !/^[?+=\d]$/.test(event.key)) return; // some keyboards have these with Shift only
    if (this.isOfControl(event)) event.stopPropagation();
    else if (this.keyed(event.key)) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  // True for a key that the control which has the focus uses by itself.
  isOfControl({ target, key }) {
    if (target.tagName === "SELECT") return key.length === 1 || [...RANGE_KEYS, "Enter", "Escape"].includes(key);
    if (target.tagName === "BUTTON") return key === "Enter" || key === " ";
    return target === this.find("opacity") && RANGE_KEYS.includes(key);
  }

  // Do what a key stands for; return false where it stands for nothing.
  keyed(key) {
    const { viewer } = this, step = this.stepOf(key), does = this.actionOf(key.toLowerCase());
    if (step) viewer.step(viewer.axis, step);
    else if (does) return does() !== false;
    return step !== undefined;
  }

  // How many slices a key goes up.
  stepOf(key) {
    const last = this.viewer.first.shape[this.viewer.axis] - 1;
    return {
      ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -last, End: last,
    }[key];
  }

  actionOf(key) {
    const { viewer } = this, { state } = viewer, { show } = viewer.content.choices;
    const next = show[(show.indexOf(state.show) + 1) % show.length];
    return {
      1: () => viewer.act({ plane: "axial" }), 2: () => viewer.act({ plane: "coronal" }),
      3: () => viewer.act({ plane: "sagittal" }), e: () => viewer.act({ show: next }),
      o: () => viewer.act({ style: state.style === "fill" ? "outline" : "fill" }),
      r: () => viewer.reset(), 0: () => viewer.look(viewer.home()),
      "+": () => viewer.zoomBy(1.5), "=": () => viewer.zoomBy(1.5), "-": () => viewer.zoomBy(1 / 1.5),
      f: () => this.toggleFullscreen(), "?": () => this.toggleHelp(), escape: () => this.leave(),
    }[key];
  }

  // Turn the wheel into slices or zoom; without focus or modifier it scrolls the page.
  wheel(event, axis, picture = null) {
    const zooming = event.ctrlKey || event.metaKey || event.altKey;
    const mine = zooming ? picture : event.shiftKey || this.root.contains(document.activeElement);
    if (!mine) return;
    event.preventDefault();
    const turn = (event.deltaY || event.deltaX) * (event.deltaMode ? 33 : 1); // with Shift some turn it sideways
    if (zooming) this.viewer.zoomAt(picture, Math.exp(-clip(turn, -100, 100) / 300), event);
    else this.scroll(axis, turn);
  }

  // A touch pad sends many small turns: they add up to a slice.
  scroll(axis, turn) {
    this.turned += turn;
    if (Math.abs(this.turned) < 20) return;
    this.viewer.step(axis, -Math.sign(this.turned));
    this.turned = 0;
  }

  toggleHelp() {
    const help = this.find("help");
    help.hidden = !help.hidden;
    this.find("keys").ariaExpanded = String(!help.hidden);
  }

  toggleFullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.root.requestFullscreen?.();
  }

  leave() {
    const help = this.find("help");
    if (!help.hidden) this.toggleHelp();
    else if (document.fullscreenElement === this.root) document.exitFullscreen();
    else return false;
    return true;
  }
}

// Mouse, pen and fingers on one image

class Gestures {
  constructor(viewer, input, picture) {
    Object.assign(this, { viewer, picture, fingers: new Map(), drag: null });
    const axis = () => PLANES[picture.plane][2], { canvas } = picture;
    const events = {
      wheel: (event) => input.wheel(event, axis(), picture),
      pointerdown: (event) => this.down(event),
      pointermove: (event) => this.move(event),
      pointerup: (event) => this.up(event),
      pointercancel: (event) => this.lift(event),
      pointerleave: () => this.point(null),
      dblclick: () => viewer.look(viewer.home()),
    };
    for (const [name, callback] of Object.entries(events)) canvas.addEventListener(name, callback, { passive: false });
  }

  point(hover) {
    this.viewer.hover = hover;
    this.viewer.controls.drawReadout();
  }

  down(event) {
    if (event.button > 1) return;
    if (event.button === 1) event.preventDefault(); // the browser would scroll by itself
    const { viewer, picture, fingers } = this, { clientX: x, clientY: y } = event;
    viewer.root.focus({ preventScroll: true });
    picture.canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x, y });
    const { window, position } = viewer.state;
    this.drag ??= { x, y, window, position, view: viewer.view, kind: null };
    if (fingers.size > 1) this.drag.kind = "pinch";
  }

  move(event) {
    const { fingers } = this, { clientX: x, clientY: y } = event, isTouch = event.pointerType === "touch";
    if (fingers.size > 1) this.pinch(event);
    else if (fingers.size) this.pull(event, x - this.drag.x, y - this.drag.y, isTouch);
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, { x, y });
    this.point(isTouch ? null : { picture: this.picture, clientX: x, clientY: y });
  }

  // One pointer that is down has moved by (dx, dy) in all.
  pull(event, dx, dy, isTouch) {
    const { viewer, picture, drag } = this;
    if (Math.hypot(dx, dy) > (isTouch ? 8 : 3)) drag.kind ??= this.kind(event, isTouch);
    if (drag.kind === "slices") this.turn(dy);
    if (drag.kind === "pan") viewer.pan(picture, drag.view, dx, dy);
    if (drag.kind === "window") viewer.dragWindow(drag.window, dx, dy);
  }

  kind({ buttons, shiftKey }, isTouch) {
    if (isTouch) return "slices";
    return buttons === 4 || this.viewer.view.zoom > 1 !== shiftKey ? "pan" : "window";
  }

  // Fingers up: towards the head, the front or the left, as with the wheel.
  turn(dy) {
    const { viewer, picture, drag } = this, axis = PLANES[picture.plane][2];
    const pixels = Math.max(4, picture.canvas.clientHeight / viewer.first.shape[axis]);
    viewer.goto(axis, drag.position[axis] - Math.round(dy / pixels));
  }

  // Two fingers: the image follows both.
  pinch(event) {
    const { viewer, picture, fingers } = this;
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1], before = fingers.get(event.pointerId);
    if (!before || !other) return;
    const { clientX: x, clientY: y } = event, gap = (point) => Math.hypot(point.x - other.x, point.y - other.y);
    viewer.pan(picture, viewer.view, (x - before.x) / 2, (y - before.y) / 2);
    const middle = { clientX: (x + other.x) / 2, clientY: (y + other.y) / 2 };
    viewer.zoomAt(picture, Math.max(1, gap({ x, y })) / Math.max(1, gap(before)), middle);
  }

  up(event) {
    const { viewer, picture, drag } = this;
    if (drag && !drag.kind && event.button === 0) {
      viewer.visit(picture.panel, picture.voxelAt(event, viewer.voxel(picture.panel)));
    }
    this.lift(event);
  }

  lift(event) {
    this.fingers.delete(event.pointerId);
    if (!this.fingers.size) this.drag = null; // after a pinch the last finger moves nothing
  }
}
