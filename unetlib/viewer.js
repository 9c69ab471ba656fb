// The slice viewer in the browser. It gets the voxels once and draws every picture itself, at once, from typed
// arrays: a key press costs no message. Voxel (x, y, z) lies at x + X * (y + Y * z); x grows to the patient's left,
// y to the back, z to the head. Only the small traits travel between Python and here.

const TRAITS = ["position", "window", "opacity", "plane", "show", "style"];
const PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] }; // axes: across, down, through
const SIDES = ["left", "right", "top", "bottom"];
const KEYS = "Arrow keys: slice by slice. Page up and down: ten slices. Home, End: first and last. 1, 2, 3: axial, " +
  "coronal, sagittal. E: what is shown. O: outline or fill. R: window as at first. Wheel: slice. Click: go there. " +
  "Drag: window, to the right for width, up for brighter.";
const TALLEST = 560; // CSS pixels of a picture
const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const transform = (matrix, point) => matrix.slice(0, 3).map((row) =>
  row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);

export default () => {
  let owner, data; // one for all views of a widget: the voxels travel once
  return {
    initialize({ model }) { owner = model; },
    render({ model, el }) {
      const root = element("div", { className: "unetlib-viewer", tabIndex: 0, role: "group" }, "Loading …");
      root.setAttribute("aria-label", `Slice viewer: ${model.get("title")}. ${KEYS}`);
      root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
      el.append(root);
      data ??= receive(owner);
      let stop = () => {};
      let closed = false;
      data.then((volumes) => { if (!closed) stop = start(root, model, volumes); });
      return () => { closed = true; stop(); };
    },
  };
};

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
    if (panel.truth || panel.prediction) Object.assign(panel, (pairs[panel.pair] ??= classify(panel)));
    panel.grey = new Uint8Array(65536);
    panel.strides = [1, panel.shape[0], panel.shape[0] * panel.shape[1]];
  }
  return content;
}

// The class of every voxel (0 in no mask, 1 truth only, 2 prediction only, 3 both), and how many there are of each
// class in every slice along each axis: counts[axis][4 * slice + class].
function classify({ shape: [X, Y, Z], truth, prediction }) {
  const classes = new Uint8Array(X * Y * Z);
  const counts = [X, Y, Z].map((length) => new Uint32Array(4 * length));
  let at = 0;
  for (let z = 0; z < Z; z++) for (let y = 0; y < Y; y++) for (let x = 0; x < X; x++, at++) {
    const found = (truth && truth[at] ? 1 : 0) | (prediction && prediction[at] ? 2 : 0);
    if (!found) continue;
    classes[at] = found;
    counts[0][4 * x + found]++;
    counts[1][4 * y + found]++;
    counts[2][4 * z + found]++;
  }
  return { classes, counts };
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (["INPUT", "SELECT", "BUTTON", "SUMMARY"].includes(made.tagName)) made.dataset.lmSuppressShortcuts = "true";
  made.append(...children);
  return made;
}

function labelled(text, control) {
  return element("label", {}, element("span", {}, text), control);
}

function select(name, label, choices) {
  const options = choices.map((value) => element("option", { value }, value));
  return labelled(label, element("select", { className: `uv-${name}`, title: label }, ...options));
}

function makeControls(root, content, title) {
  const { plane, show, style } = content.choices;
  root.replaceChildren(
    element("div", { className: "uv-bar" },
      element("strong", { className: "uv-title", title }, title),
      select("plane-select", "Plane", plane), select("show", "Show", show), select("style", "Style", style),
      labelled("Opacity", element("input", { type: "range", className: "uv-opacity", min: 0, max: 1, step: 0.05 }))),
    element("div", { className: "uv-pictures" }),
    element("div", { className: "uv-steps" },
      element("input", { type: "range", className: "uv-slice", min: 0, step: 1, ariaLabel: "Slice" }),
      element("div", { className: "uv-strip-box" },
        element("canvas", { className: "uv-strip", role: "img" }), element("div", { className: "uv-mark" }))),
    element("div", { className: "uv-readout", ariaLive: "polite" }),
    element("div", { className: "uv-foot" },
      element("div", { className: "uv-legend" }),
      element("details", { className: "uv-help" }, element("summary", {}, "Keys and mouse"), KEYS)),
    element("div", { className: "uv-notes" },
      ...content.notes.map((note) => element("span", { className: "uv-note" }, note))));
  return (name) => root.querySelector(`.uv-${name}`);
}

function makePicture(panel, volume, plane, letters) {
  const canvas = element("canvas", { className: "uv-plane", role: "img" });
  canvas.dataset.volume = volume;
  const caption = element("figcaption", {});
  const marks = SIDES.map((side) => {
    const mark = element("span", { className: "uv-letter" });
    mark.dataset.side = side;
    return mark;
  });
  const around = element("div", { className: "uv-letters" }, ...marks);
  const frame = element("div", { className: "uv-frame" }, canvas, around);
  const picture = { panel, canvas, caption, frame, figure: element("figure", {}, frame, caption) };
  picture.turn = (to) => { // show another plane
    const [across, down] = PLANES[(picture.plane = canvas.dataset.plane = to)];
    [picture.width, picture.height] = [panel.shape[across], panel.shape[down]];
    picture.extent = [picture.width * panel.spacing[across], picture.height * panel.spacing[down]]; // mm
    picture.pixels = new ImageData(picture.width, picture.height);
    picture.colours = new Uint32Array(picture.pixels.data.buffer);
    picture.classes = new Uint8Array(picture.width * picture.height);
    picture.sheet = element("canvas", { width: picture.width, height: picture.height });
    marks.forEach((mark, side) => { mark.textContent = letters[to][side]; });
  };
  picture.turn(plane);
  return picture;
}

// Fill the picture's pixels from one slice, and its classes with those of the slice.
function paint({ panel, plane, width, height, colours, classes }, index) {
  const { voxels, grey, strides, table } = panel, marked = panel.classes, up = plane !== "axial";
  const [across, down, through] = PLANES[plane].map((axis) => strides[axis]);
  for (let row = 0, pixel = 0; row < height; row++) {
    let at = index * through + (up ? height - 1 - row : row) * down;
    for (let column = 0; column < width; column++, pixel++, at += across) {
      const found = marked ? marked[at] : 0;
      classes[pixel] = found;
      colours[pixel] = table[(found << 8) | grey[voxels[at] + 32768]];
    }
  }
}

// The borders of the layers in a picture, in voxels: as lines they hide none. Each lies (dx, dy) inside its layer, so
// that those of two neighbours are seen beside each other.
function borders({ width, height, classes }, layers, dx, dy) {
  const found = layers.map(([, colour, members]) => {
    const path = new Path2D(), inside = [0, 1, 2, 3].map((number) => members.includes(number));
    return { colour, path, inside, line(x1, y1, x2, y2) { path.moveTo(x1, y1); path.lineTo(x2, y2); } };
  });
  for (let row = 0, pixel = 0; row < height; row++) for (let column = 0; column < width; column++, pixel++) {
    const own = classes[pixel], left = column ? classes[pixel - 1] : 0, above = row ? classes[pixel - width] : 0;
    const last = own && (column === width - 1 || row === height - 1);
    if (own === left && own === above && !last) continue;
    for (const { inside, line } of found) {
      const x = column + (inside[own] ? dx : -dx), y = row + (inside[own] ? dy : -dy);
      if (inside[own] !== inside[left]) line(x, row, x, row + 1);
      if (inside[own] !== inside[above]) line(column, y, column + 1, y);
      if (inside[own] && column === width - 1) line(width - dx, row, width - dx, row + 1);
      if (inside[own] && row === height - 1) line(column, height - dy, column + 1, height - dy);
    }
  }
  return found;
}

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

// The mean colour of the layers that a class belongs to, or null.
function classColour(layers, number) {
  const mine = layers.filter(([, , members]) => members.includes(number)).map(([, colour]) => rgb(colour));
  return mine.length ? [0, 1, 2].map((i) => mine.reduce((sum, colour) => sum + colour[i], 0) / mine.length) : null;
}

// The colour of each class (high bits) at each grey level (low 8 bits), as the bytes red, green, blue, alpha.
function colourTable(layers, opacity) {
  const table = new Uint32Array(4 * 256), bytes = new Uint8ClampedArray(table.buffer);
  for (let number = 0; number < 4; number++) {
    const colour = classColour(layers, number);
    for (let level = 0; level < 256; level++) {
      const mixed = colour ? colour.map((part) => level + opacity * (part - level)) : [level, level, level];
      bytes.set([...mixed, 255], 4 * (256 * number + level));
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

function start(root, model, content) {
  const { panels, layers, letters, choices } = content;
  const find = makeControls(root, content, model.get("title"));
  const first = panels[0], many = panels.length > 1;
  const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
  const pictures = (many ? panels.map((panel) => [panel, state.plane]) : choices.plane.map((plane) => [first, plane]))
    .map(([panel, plane]) => makePicture(panel, panels.indexOf(panel), plane, letters));
  const box = find("pictures"), slider = find("slice"), strip = find("strip");
  box.append(...pictures.map((picture) => picture.figure));
  let frames = 0, room = 0, hover = null, shown;
  let done = {}; // what each part was drawn from last: nothing is drawn twice

  const axis = () => PLANES[state.plane][2];
  const inPanel = (panel, at = state.position) => (panel === first ? at : transform(panel.link, at)
    .map((value, i) => clip(Math.round(value), 0, panel.shape[i] - 1)));
  const windowOf = (panel) => state.window.map((value) => panel.window[0] +
    ((value - first.window[0]) * (panel.window[1] - panel.window[0])) / (first.window[1] - first.window[0]));

  // What is drawn in a panel: where one of its masks is missing there are no errors, only the other mask.
  const layersOf = ({ truth, prediction }) => {
    const alone = truth && !prediction ? "truth" : prediction && !truth ? "prediction" : "errors";
    return layers[state.show === "errors" ? alone : state.show];
  };

  // True when what a part of the picture depends on has changed since it was drawn.
  const stale = (part, ...on) => {
    const key = JSON.stringify(on);
    return done[part] !== key && ((done[part] = key), true);
  };

  function arrange() { // give each picture its size: all in one scale, as tall as the tallest
    const count = pictures.length;
    const rows = Math.ceil(count / clip(Math.floor(room / 180), 1, count)), columns = Math.ceil(count / rows);
    box.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    const share = (room - 4 * (columns - 1)) / columns;
    const scale = Math.min(...pictures.map(({ extent: [w, h] }) => Math.min(share / w, TALLEST / h)));
    const tallest = Math.max(...pictures.map(({ extent }) => extent[1] * scale));
    for (const { canvas, frame, figure, extent } of pictures) {
      const [w, h] = extent.map((side) => Math.max(1, Math.floor(side * scale)));
      Object.assign(frame.style, { width: `${w}px`, height: `${h}px` });
      figure.style.height = `${Math.ceil(tallest)}px`;
      canvas.width = Math.round(w * devicePixelRatio);
      canvas.height = Math.round(h * devicePixelRatio);
    }
  }

  function drawPicture(picture, number) {
    const { panel, canvas, width, height, sheet, plane } = picture;
    const at = inPanel(panel), [across, down, through] = PLANES[plane], context = canvas.getContext("2d");
    const [sx, sy] = [canvas.width / width, canvas.height / height], thick = 1.5 * devicePixelRatio;
    if (stale(`slice ${number}`, plane, at[through], sx, sy, { ...state, position: 0 })) {
      paint(picture, at[through]);
      sheet.getContext("2d").putImageData(picture.pixels, 0, 0);
      picture.borders = state.style === "outline" && panel.classes
        ? borders(picture, layersOf(panel), thick / 2 / sx, thick / 2 / sy) : [];
      picture.caption.textContent = `${many ? panel.name : plane} · ${"xyz"[through]} ${at[through]}`;
      canvas.ariaLabel = `${many ? `${panel.name}, ` : ""}${plane} slice ${at[through]} of ${panel.shape[through]}`;
    }
    context.imageSmoothingEnabled = Math.min(sx, sy) < 3; // from there on a voxel is large enough to be seen as one
    context.drawImage(sheet, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = Math.min(1, 2 * state.opacity);
    context.lineWidth = thick;
    context.lineCap = "square";
    for (const { colour, path } of picture.borders) {
      const scaled = new Path2D();
      scaled.addPath(path, { a: sx, d: sy });
      context.strokeStyle = colour;
      context.stroke(scaled);
    }
    context.globalAlpha = 1;
    const row = plane === "axial" ? at[down] : height - 1 - at[down];
    cross(context, (at[across] + 0.5) * sx, (row + 0.5) * sy);
  }

  function cross(context, x, y) { // open in the middle, so that the voxel is seen
    const { width, height } = context.canvas, gap = 9 * devicePixelRatio;
    const line = Math.max(1, Math.round(devicePixelRatio));
    const [left, top] = [Math.round(x - line / 2), Math.round(y - line / 2)];
    context.fillStyle = "rgba(255, 255, 255, 0.45)";
    context.fillRect(left, 0, line, y - gap);
    context.fillRect(left, y + gap, line, height);
    context.fillRect(0, top, x - gap, line);
    context.fillRect(x + gap, top, width, line);
  }

  function drawStrip() { // one row for each pair of masks, one bar a slice of the first volume
    const rows = [...new Map(panels.filter(({ counts }) => counts).map((panel) => [panel.pair, panel])).values()];
    const n = first.shape[axis()], width = (strip.width = Math.round(strip.clientWidth * devicePixelRatio));
    strip.style.height = `${Math.max(24, 16 * rows.length)}px`;
    const height = (strip.height = Math.round(parseFloat(strip.style.height) * devicePixelRatio));
    const context = strip.getContext("2d"), tall = height / Math.max(1, rows.length), seen = [];
    rows.forEach((panel, row) => {
      const colours = [1, 2, 3].map((number) => [number, classColour(layersOf(panel), number)]).filter(([, c]) => c);
      const bars = Array.from({ length: n }, (_, i) => {
        const there = inPanel(panel, state.position.map((value, a) => (a === axis() ? i : value)))[axis()];
        return colours.map(([number]) => panel.counts[axis()][4 * there + number]);
      });
      const most = Math.max(1, ...bars.map((bar) => bar.reduce((a, b) => a + b, 0)));
      bars.forEach((bar, i) => {
        let bottom = (row + 1) * tall;
        bar.forEach((count, k) => {
          if (!count) return;
          seen.push(i);
          const part = Math.max(devicePixelRatio, (count / most) * (tall - 3 * devicePixelRatio));
          context.fillStyle = `rgb(${colours[k][1]})`;
          context.fillRect((i * width) / n, bottom - part, Math.max(width / n - 0.5, 1), part);
          bottom -= part;
        });
      });
    });
    strip.ariaLabel = seen.length
      ? `Slices ${Math.min(...seen)} to ${Math.max(...seen)} of ${n} hold something of what is shown; click to go there`
      : "No slice holds anything of what is shown";
  }

  function drawControls() {
    const n = first.shape[axis()], index = state.position[axis()];
    if (stale("controls", state.plane, state.show, state.style, state.opacity)) {
      slider.max = n - 1;
      find("plane-select").value = state.plane;
      for (const name of ["show", "style", "opacity"]) find(name).value = state[name];
      find("opacity").ariaValueText = `${Math.round(100 * state.opacity)} percent`;
    }
    slider.value = index;
    slider.ariaValueText = `${state.plane} slice ${index} of ${n}`;
    find("mark").style.left = `${(100 * (index + 0.5)) / n}%`;
    if (stale("legend", state.show, state.style)) find("legend").replaceChildren(...legend());
    if (stale("strip", state.plane, state.show, room, devicePixelRatio)) drawStrip();
  }

  function legend() {
    const entries = new Map(panels.flatMap(layersOf).map(([name, colour]) => [name, colour]));
    if (state.show === "both" && state.style === "fill") entries.set("in both", `rgb(${classColour(layers.both, 3)})`);
    return [...entries].map(([name, colour]) => {
      const swatch = element("i");
      swatch.style.background = colour;
      return element("span", {}, swatch, name);
    });
  }

  function drawReadout() { // of the voxel under the pointer, else of the position
    const panel = hover ? hover.picture.panel : first, at = [...inPanel(panel)];
    if (hover) {
      const [across, down] = PLANES[hover.picture.plane];
      [at[across], at[down]] = [hover.column, hover.row];
    }
    const here = at[0] * panel.strides[0] + at[1] * panel.strides[1] + at[2] * panel.strides[2];
    const value = panel.slope * panel.voxels[here] + panel.intercept;
    const mm = transform(panel.affine, at)
      .map((side, i) => `${["LR", "PA", "IS"][i][side < 0 ? 0 : 1]} ${Math.abs(side).toFixed(1)}`);
    const words = {
      name: many && panel.name,
      value: `value ${Number.isInteger(value) ? value : Number(value.toPrecision(5))}`,
      truth: panel.truth && `truth ${panel.truth[here]}`,
      prediction: panel.prediction && `prediction ${panel.prediction[here]}`,
      voxel: `voxel ${at.join(", ")}`,
      mm: `${mm.join(" ")} mm`,
    };
    find("readout").replaceChildren(...Object.entries(words).filter(([, text]) => text)
      .flatMap(([name, text]) => [element("span", { className: `uv-${name}` }, text), " "]));
  }

  function draw() {
    if (many && stale("plane", state.plane)) {
      pictures.forEach((picture) => picture.turn(state.plane));
      done = { plane: done.plane };
    }
    if (!room) return; // nothing can be seen yet: the observer calls when there is room
    if (stale("size", room, devicePixelRatio, many && state.plane)) arrange();
    if (stale("window", state.window)) panels.forEach((panel) => setGrey(panel, windowOf(panel)));
    if (stale("table", state.show, state.style, state.opacity)) {
      const fill = state.style === "fill";
      for (const panel of panels) panel.table = colourTable(fill ? layersOf(panel) : [], state.opacity);
    }
    pictures.forEach(drawPicture);
    drawControls();
    drawReadout();
    if (same(shown, state)) return;
    shown = { ...state };
    root.dataset.position = state.position;
    root.dataset.ready = "1";
    root.dataset.frames = ++frames;
  }

  // Take new values of traits and draw them, unless nothing is new.
  function take(news) {
    if (news.position) news.position = news.position.map((value, along) => clip(value, 0, first.shape[along] - 1));
    const fresh = Object.keys(news).filter((name) => !same(news[name], state[name]));
    if (!fresh.length) return;
    for (const name of fresh) state[name] = news[name];
    draw();
    return fresh;
  }

  // The same for what a person does, told to Python at most once a frame.
  let waiting = null;
  function act(news) {
    const fresh = take(news);
    if (!fresh) return;
    if (!waiting) requestAnimationFrame(tell);
    waiting = new Set([...(waiting ?? []), ...fresh]);
  }
  function tell() {
    const names = waiting;
    waiting = null;
    names.forEach((name) => model.set(name, state[name]));
    model.save_changes();
  }

  const goto = (along, index) => {
    act({ position: state.position.map((value, a) => (a === along ? index : value)) });
  };
  const step = (along, by) => goto(along, state.position[along] + by);

  function press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target !== slider && event.target.dataset.lmSuppressShortcuts && event.target !== root) return;
    const along = axis(), last = first.shape[along] - 1, { key } = event;
    const shows = choices.show;
    const moves = {
      ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -last, End: last,
    };
    const news = {
      1: { plane: "axial" }, 2: { plane: "coronal" }, 3: { plane: "sagittal" },
      o: { style: state.style === "fill" ? "outline" : "fill" },
      e: { show: shows[(shows.indexOf(state.show) + 1) % shows.length] },
      r: { window: first.window },
    }[key.toLowerCase()];
    if (key in moves) step(along, moves[key]);
    else if (news) act(news);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  let turned = 0; // how far the wheel has turned: a touch pad sends many small turns
  function wheel(event, along) {
    event.preventDefault();
    turned += event.deltaY * (event.deltaMode ? 33 : 1);
    if (Math.abs(turned) < 20) return;
    step(along, -Math.sign(turned));
    turned = 0;
  }

  function pixelAt(picture, event) {
    const { left, top, width, height } = picture.canvas.getBoundingClientRect();
    const column = clip(Math.floor(((event.clientX - left) / width) * picture.width), 0, picture.width - 1);
    const row = clip(Math.floor(((event.clientY - top) / height) * picture.height), 0, picture.height - 1);
    return { picture, column, row: picture.plane === "axial" ? row : picture.height - 1 - row };
  }

  function listen(picture) {
    const { canvas, panel } = picture;
    let drag = null;
    canvas.addEventListener("wheel", (event) => wheel(event, PLANES[picture.plane][2]), { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      root.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      drag = { x: event.clientX, y: event.clientY, window: state.window, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      hover = pixelAt(picture, event);
      if (drag) {
        const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
        drag.moved ||= Math.hypot(dx, dy) > 3;
        if (drag.moved) act({ window: dragged(drag.window, dx, dy) });
      }
      drawReadout();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (drag && !drag.moved) {
        const { column, row } = pixelAt(picture, event), at = [...inPanel(panel)];
        [at[PLANES[picture.plane][0]], at[PLANES[picture.plane][1]]] = [column, row];
        const there = panel === first ? at : transform(panel.back, at).map(Math.round);
        act({ position: there });
      }
      drag = null;
    });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("pointerleave", () => { hover = null; drawReadout(); });
  }

  // The window after a drag: to the right wider, up brighter; the default width is 250 pixels.
  function dragged([low, high], dx, dy) {
    const unit = (first.window[1] - first.window[0]) / 250;
    const width = Math.max(high - low + dx * unit, unit), level = (low + high) / 2 + dy * unit;
    return [level - width / 2, level + width / 2];
  }

  root.addEventListener("keydown", press);
  pictures.forEach(listen);
  slider.addEventListener("input", () => goto(axis(), Number(slider.value)));
  find("opacity").addEventListener("input", (event) => act({ opacity: Number(event.target.value) }));
  for (const [control, name] of [["plane-select", "plane"], ["show", "show"], ["style", "style"]]) {
    find(control).addEventListener("change", (event) => act({ [name]: event.target.value }));
  }
  strip.addEventListener("pointerdown", (event) => {
    const { left, width } = strip.getBoundingClientRect();
    goto(axis(), Math.floor(((event.clientX - left) / width) * first.shape[axis()]));
    slider.focus({ preventScroll: true });
  });
  find("steps").addEventListener("wheel", (event) => wheel(event, axis()), { passive: false });
  const changed = TRAITS.map((name) => [`change:${name}`, () => take({ [name]: model.get(name) })]);
  changed.forEach(([event, callback]) => model.on(event, callback));
  const fit = () => {
    room = box.clientWidth;
    root.classList.toggle("uv-narrow", room < 640);
    draw();
  };
  const observer = new ResizeObserver(fit);
  observer.observe(box);
  fit();
  return () => {
    observer.disconnect();
    changed.forEach(([event, callback]) => model.off(event, callback));
  };
}
