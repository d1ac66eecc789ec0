"use strict";
// Each gallery draws the sprite of one slice: rows are truth, methods, sd; columns the
// modalities. Nothing is fetched: the sprites are in the page as base64.
(() => {
  const STOPS = [[0, 0, 0], [60, 15, 110], [190, 40, 85], [250, 140, 20], [255, 255, 190]];

  const colourAt = (share) => {
    const position = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const low = Math.min(Math.floor(position), STOPS.length - 2);
    return STOPS[low].map((c, k) => Math.round(c + (position - low) * (STOPS[low + 1][k] - c)));
  };
  const GREY = Array.from({ length: 256 }, (_, level) => [level, level, level]);
  const coloursUpTo = (limit) => GREY.map((_, level) => colourAt(level / limit));
  const gradient = (colours) => `linear-gradient(to right, ${colours.join(", ")})`;
  const css = (colour) => `rgb(${colour.join(" ")})`;

  function startGallery(root) {
    const data = JSON.parse(root.dataset.gallery);
    const [subject, slice] = [root.querySelector("select"), root.querySelector("[type=range]")];
    const rows = [...root.querySelectorAll("[data-row]")];
    const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    let drawings = 0;

    const shownSubject = () => data.subjects[subject.value];
    const view = () => root.querySelector("[type=radio]:checked").value;

    // What a row shows: null (nothing), or whether it is an error map, and its colours.
    function display(name, view, known) {
      if (!known.includes(name)) return null;
      if (name === "truth") return { label: "", error: false, colours: GREY };
      if (view === "images") {
        return name === "sd" ? null : { label: "", error: false, colours: GREY };
      }
      const colours = coloursUpTo(shownSubject().limits[view]);
      if (name === "sd") return view === "sd" ? { label: "", error: false, colours } : null;
      if (view === "sd" && name !== data.network) return null;
      return { label: "absolute error", error: true, colours };
    }

    function levels(pixels, width, height, row, error) {
      const [start, count] = [row * width * height, width * height];
      const found = new Uint8ClampedArray(count);
      for (let k = 0; k < count; k += 1) {
        const value = pixels[4 * (start + k)];
        found[k] = error ? Math.abs(value - pixels[4 * k]) : value;
      }
      return found;
    }

    function paint(canvas, values, colours, width, height) {
      [canvas.width, canvas.height] = [width, height];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const image = context.createImageData(width, height);
      values.forEach((level, k) => image.data.set([...colours[level], 255], 4 * k));
      context.putImageData(image, 0, 0);
    }

    function brainMeans(values, pixels, width) {
      const count = data.modalities.length;
      const sums = Array.from({ length: count }, () => [0, 0]);
      values.forEach((level, k) => {
        if (pixels[4 * k] === 0) return; // the truth's background
        const sum = sums[Math.floor(((k % width) * count) / width)];
        sum[0] += level;
        sum[1] += 1;
      });
      return sums.map(([total, voxels]) => (voxels ? (total / voxels).toFixed(1) : "–"));
    }

    function drawRow(row, pixels, width, height) {
      const name = row.dataset.row;
      const shown = display(name, view(), shownSubject().rows);
      row.hidden = shown === null;
      if (shown === null) return;
      const canvas = row.querySelector("canvas");
      const index = shownSubject().rows.indexOf(name);
      const values = levels(pixels, width, height, index, shown.error);
      paint(canvas, values, shown.colours, width, height);
      row.querySelector(".what").textContent = shown.label;
      const means = shown.colours === GREY ? [] : brainMeans(values, pixels, width);
      row.querySelector(".means").replaceChildren(
        ...means.map((text) => Object.assign(document.createElement("span"), { textContent: text })),
      );
      const title = row.querySelector(".label").firstChild.textContent;
      const columns = data.modalities.map((m, k) => (means[k] ? `${m} ${means[k]}` : m));
      const position = root.querySelector("output").textContent;
      const label = [title, shown.label, columns.join(", "), position];
      canvas.setAttribute("aria-label", label.filter(Boolean).join("; "));
    }

    function drawScale() {
      const grey = view() === "images";
      const top = grey ? 255 : shownSubject().limits[view()];
      const ends = grey ? [[0, 0, 0], [255, 255, 255]] : STOPS;
      root.querySelector(".scale i").style.background = gradient(ends.map(css));
      root.querySelector(".high").textContent = `${top}${grey ? "" : " or more"} grey levels`;
    }

    async function draw() {
      const drawing = (drawings += 1);
      const { slices, rows: known } = shownSubject();
      slice.max = slices.length - 1;
      const index = Number(slice.value);
      const position = `${index + 1} of ${slices.length}, z = ${slices[index]}`;
      root.querySelector("output").textContent = position;
      slice.setAttribute("aria-valuetext", `slice ${position}`);
      const text = root.querySelector(`[data-sprite="${subject.value}-${index}"]`).textContent;
      const sprite = new Image();
      sprite.src = `data:image/png;base64,${text}`;
      await sprite.decode();
      if (drawing !== drawings) return; // the reader has moved on
      const [width, height] = [sprite.width, sprite.height];
      [scratch.canvas.width, scratch.canvas.height] = [width, height];
      scratch.drawImage(sprite, 0, 0);
      const pixels = scratch.getImageData(0, 0, width, height).data;
      rows.forEach((row) => drawRow(row, pixels, width, height / known.length));
      drawScale();
      root.dataset.drawn = `${subject.value} ${index} ${view()}`;
    }

    function showSubject() {
      slice.max = shownSubject().slices.length - 1;
      slice.value = Math.floor(shownSubject().slices.length / 2);
      draw();
    }
    slice.addEventListener("input", draw);
    subject.addEventListener("change", showSubject);
    root.querySelectorAll("[type=radio]").forEach((radio) => radio.addEventListener("change", draw));
    showSubject();
  }

  document.querySelectorAll(".gallery").forEach(startGallery);
})();
