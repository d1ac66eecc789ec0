"use strict";
// Each gallery draws the sprite of one slice: rows are truth, methods, sd; columns the
// modalities. Nothing is fetched: the sprites stand in the page as base64.
(() => {
  const STOPS = [[0, 0, 0], [60, 15, 110], [190, 40, 85], [250, 140, 20], [255, 255, 190]];

  const colourAt = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const low = Math.min(Math.floor(place), STOPS.length - 2);
    return STOPS[low].map((c, k) => Math.round(c + (place - low) * (STOPS[low + 1][k] - c)));
  };
  const GREY = Array.from({ length: 256 }, (_, level) => [level, level, level]);
  const coloursUpTo = (limit) => GREY.map((_, level) => colourAt(level / limit));
  const gradient = (colours) => `linear-gradient(to right, ${colours.join(", ")})`;
  const css = (colour) => `rgb(${colour.join(" ")})`;

  function gallery(root) {
    const about = JSON.parse(root.dataset.about);
    const [subject, slice] = [root.querySelector("select"), root.querySelector("[type=range]")];
    const rows = [...root.querySelectorAll("[data-row]")];
    const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    let ticket = 0;

    const one = () => about.subjects[subject.value];
    const view = () => root.querySelector("[type=radio]:checked").value;

    // What a row shows: null (nothing), or where its levels come from and how they look.
    function shown(name, view, known) {
      if (!known.includes(name)) return null;
      if (name === "truth") return { what: "", error: false, colours: GREY };
      if (view === "images") {
        return name === "sd" ? null : { what: "", error: false, colours: GREY };
      }
      const colours = coloursUpTo(one().limits[view]);
      if (name === "sd") return view === "sd" ? { what: "", error: false, colours } : null;
      if (view === "sd" && name !== about.network) return null;
      return { what: "absolute error", error: true, colours };
    }

    function levels(pixels, width, tall, place, error) {
      const [from, count] = [place * width * tall, width * tall];
      const found = new Uint8ClampedArray(count);
      for (let k = 0; k < count; k += 1) {
        const value = pixels[4 * (from + k)];
        found[k] = error ? Math.abs(value - pixels[4 * k]) : value;
      }
      return found;
    }

    function paint(canvas, values, colours, width, tall) {
      [canvas.width, canvas.height] = [width, tall];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const image = context.createImageData(width, tall);
      values.forEach((level, k) => image.data.set([...colours[level], 255], 4 * k));
      context.putImageData(image, 0, 0);
    }

    function means(values, pixels, width) {
      const count = about.modalities.length;
      const sums = Array.from({ length: count }, () => [0, 0]);
      values.forEach((level, k) => {
        if (pixels[4 * k] === 0) return; // the truth's background
        const sum = sums[Math.floor(((k % width) * count) / width)];
        sum[0] += level;
        sum[1] += 1;
      });
      return sums.map(([total, voxels]) => (voxels ? (total / voxels).toFixed(1) : "–"));
    }

    function drawRow(row, pixels, width, tall) {
      const name = row.dataset.row;
      const how = shown(name, view(), one().rows);
      row.hidden = how === null;
      if (how === null) return;
      const canvas = row.querySelector("canvas");
      const values = levels(pixels, width, tall, one().rows.indexOf(name), how.error);
      paint(canvas, values, how.colours, width, tall);
      row.querySelector(".what").textContent = how.what;
      const numbers = how.colours === GREY ? [] : means(values, pixels, width);
      row.querySelector(".means").replaceChildren(
        ...numbers.map((text) => Object.assign(document.createElement("span"), { textContent: text })),
      );
      const title = row.querySelector(".label").firstChild.textContent;
      const told = about.modalities.map((m, k) => (numbers[k] ? `${m} ${numbers[k]}` : m));
      const words = [title, how.what, told.join(", "), root.querySelector("output").textContent];
      canvas.setAttribute("aria-label", words.filter(Boolean).join("; "));
    }

    function drawScale() {
      const grey = view() === "images";
      const top = grey ? 255 : one().limits[view()];
      const ends = grey ? [[0, 0, 0], [255, 255, 255]] : STOPS;
      root.querySelector(".scale i").style.background = gradient(ends.map(css));
      root.querySelector(".high").textContent = `${top}${grey ? "" : " or more"} grey levels`;
    }

    async function draw() {
      const mine = (ticket += 1);
      const { slices, rows: known } = one();
      slice.max = slices.length - 1;
      const place = Number(slice.value);
      const words = `${place + 1} of ${slices.length}, z = ${slices[place]}`;
      root.querySelector("output").textContent = words;
      slice.setAttribute("aria-valuetext", `slice ${words}`);
      const text = root.querySelector(`[data-sprite="${subject.value}-${place}"]`).textContent;
      const picture = new Image();
      picture.src = `data:image/png;base64,${text}`;
      await picture.decode();
      if (mine !== ticket) return; // the reader has moved on
      const [width, height] = [picture.width, picture.height];
      [scratch.canvas.width, scratch.canvas.height] = [width, height];
      scratch.drawImage(picture, 0, 0);
      const pixels = scratch.getImageData(0, 0, width, height).data;
      rows.forEach((row) => drawRow(row, pixels, width, height / known.length));
      drawScale();
      root.dataset.drawn = `${subject.value} ${place} ${view()}`;
    }

    function begin() {
      slice.max = one().slices.length - 1;
      slice.value = Math.floor(one().slices.length / 2);
      draw();
    }
    slice.addEventListener("input", draw);
    subject.addEventListener("change", begin);
    root.querySelectorAll("[type=radio]").forEach((radio) => radio.addEventListener("change", draw));
    begin();
  }

  document.querySelectorAll(".gallery").forEach(gallery);
})();
