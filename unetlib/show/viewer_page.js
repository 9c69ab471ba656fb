// The viewer in a page without a notebook: an element that keeps the traits itself and answers with the data it holds.
// It stands behind viewer.js, whose export is called makeWidget here.

async function inflate(script) {
  const packed = Uint8Array.from(atob(script.textContent), (character) => character.charCodeAt(0));
  const bytes = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new DataView(interleave(new Uint8Array(await new Response(bytes).arrayBuffer())).buffer);
}

// The bytes of even places come first, then those of odd ones.
function interleave(bytes) {
  const whole = new Uint8Array(bytes.length), half = Math.ceil(bytes.length / 2);
  for (let i = 0; i < half; i++) {
    whole[2 * i] = bytes[i];
    if (2 * i + 1 < bytes.length) whole[2 * i + 1] = bytes[half + i];
  }
  return whole;
}

function makeModel(state, answer) {
  const listeners = {};
  const tell = (event, ...news) => (listeners[event] ?? []).forEach((listen) => listen(...news));
  return {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; tell(`change:${name}`); },
    on: (event, listen) => (listeners[event] ??= []).push(listen),
    off: (event, listen) => { listeners[event] = (listeners[event] ?? []).filter((one) => one !== listen); },
    save_changes: () => {},
    send: async () => tell("msg:custom", ...await answer()),
  };
}

if (!customElements.get("unetlib-viewer")) {
  customElements.define("unetlib-viewer", class extends HTMLElement {
    connectedCallback() {
      if (this.live) return;
      this.live = true;
      const { content, state } = JSON.parse(this.querySelector(".uv-about").textContent);
      const data = [...this.querySelectorAll(".uv-data")];
      const model = makeModel(state, async () => [content, await Promise.all(data.map(inflate))]);
      const widget = makeWidget();
      widget.initialize({ model });
      widget.render({ model, el: this });
      this.querySelector(".uv-still").remove();
    }
  });
}
