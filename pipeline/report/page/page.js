"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function thumbnail(place, description) {
  const picture = document.createElement("span"), { columns, side } = data.sheet;
  picture.className = "thumbnail";
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", description);
  picture.style.backgroundPosition = `${-(place % columns) * side}px ${-Math.floor(place / columns) * side}px`;
  return picture;
}

function line(text, name) {
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  paragraph.className = name || "";
  paragraph.dir = "auto"; // names may be written from right to left
  return paragraph;
}

// The map: pointing, tapping or moving by arrow keys chooses a point, whose image and neighbours are shown.
const map = document.getElementById("map");
if (map) {
  const points = data.points, circles = [...map.querySelectorAll("circle")], card = document.getElementById("card");
  const button = document.getElementById("before");
  let chosen = -1, places = points.map((point) => point.after);

  button.addEventListener("click", () => { // before training by the pooled features, after it by the embeddings
    const before = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", before);
    places = points.map((point) => before ? point.before : point.after);
    places.forEach(([x, y], number) => {
      circles[number].setAttribute("cx", x);
      circles[number].setAttribute("cy", y);
    });
  });

  function choose(number) {
    if (chosen >= 0) circles[chosen].classList.remove("chosen");
    chosen = number;
    circles[number].classList.add("chosen");
    const point = points[number], neighbours = document.createElement("div");
    neighbours.className = "images";
    const nearest = point.neighbours || [], text = ({ label, place }) => `${label}: ${data.names[place]}`;
    for (const each of nearest) {
      const frame = document.createElement("span");
      frame.className = each.same ? "same" : "other";
      frame.append(thumbnail(each.place, text(each)));
      neighbours.append(frame);
    }
    card.replaceChildren(thumbnail(point.place, text(point)), line(point.label));
    if (point.predicted) card.append(line(`predicted as ${point.predicted}`));
    card.append(line(data.names[point.place], "name"));
    if (nearest.length) card.append(line("Nearest training images:"), neighbours);
    for (const each of nearest) card.append(line(text(each), "name"));
  }

  function chooseNearest(event) { // of the points near the pointer; a tap chooses from farther away
    const box = map.getBoundingClientRect(), scale = 1000 / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = -1, least = ((event.type === "click" ? 40 : 12) * scale) ** 2;
    places.forEach((place, number) => {
      const distance = (place[0] - x) ** 2 + (place[1] - y) ** 2;
      if (distance < least) [best, least] = [number, distance];
    });
    if (best >= 0 && best !== chosen) choose(best);
  }

  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("pointermove", chooseNearest);
  map.addEventListener("click", chooseNearest);
  map.addEventListener("focus", () => { if (chosen < 0) choose(0); });
  map.addEventListener("keydown", (event) => {
    const direction = directions[event.key];
    if (!direction) return;
    event.preventDefault();
    const from = places[chosen];
    let best = -1, least = Infinity;
    places.forEach((place, number) => {
      const x = place[0] - from[0], y = place[1] - from[1];
      const along = x * direction[0] + y * direction[1], across = Math.abs(x * direction[1] + y * direction[0]);
      if (along > 0 && along >= across && along + across < least) [best, least] = [number, along + across];
    });
    if (best >= 0) choose(best);
  });
}

// The threshold: both error rates, by counting the distances beyond it.
const slider = document.getElementById("threshold");
if (slider) {
  const percent = (count, all) => `${(100 * count / all).toFixed(1)}% of ${all.toLocaleString("en")}`;
  const rates = () => {
    const value = Number(slider.value), { known, unknown } = data.distances;
    document.getElementById("threshold-value").textContent = value.toPrecision(4);
    if (known.length) {
      const rejected = known.filter((each) => each > value).length;
      document.getElementById("rate-known").textContent = percent(rejected, known.length);
    }
    if (unknown.length) {
      const accepted = unknown.filter((each) => each <= value).length;
      document.getElementById("rate-unknown").textContent = percent(accepted, unknown.length);
    }
  };
  slider.addEventListener("input", rates);
  rates();
}

// Tables that sort by a column: numbers the largest first, then the other way round.
for (const table of document.querySelectorAll(".sortable")) {
  const body = table.tBodies[0], headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.firstChild.addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") !== (column ? "descending" : "ascending");
    const sign = descending === (column > 0) ? -1 : 1;
    const value = (row) => row.cells[column].textContent;
    const compare = (a, b) => column ? value(a) - value(b) : value(a).localeCompare(value(b), "en", { numeric: true });
    body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    headers.forEach((each) => each.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  }));
}
