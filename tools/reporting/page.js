// Filters and sorts the gallery. What follows # in the address sets the filter, so that a choice
// can be linked to: report.html#text=left+star&to=50
"use strict";
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const fields = form.elements;
  const gallery = document.getElementById("cases");
  const cases = [...gallery.children];
  const limit = (field, otherwise) => (field.value === "" ? otherwise : Number(field.value));

  function fits(one, words, low, high) {
    const sentence = one.querySelector("h3").textContent.toLowerCase();
    const iou = Number(one.dataset.iou);
    return words.every((word) => sentence.includes(word)) && low <= iou && iou <= high
      && (!fields.split.value || fields.split.value === one.dataset.split)
      && (!fields.kind.value || fields.kind.value === one.dataset.kind);
  }

  function show() {
    const words = fields.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const low = limit(fields.from, 0);
    const high = limit(fields.to, 100);
    for (const one of cases) one.hidden = !fits(one, words, low, high);
    const key = fields.order.value.replace("-", "");
    const sign = fields.order.value.startsWith("-") ? -1 : 1;
    cases.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]));
    gallery.append(...cases);
    const shown = cases.filter((one) => !one.hidden).length;
    form.querySelector("output").textContent = `${shown} of ${cases.length}`;
  }

  function restore() {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (value && fields.namedItem(name)) fields.namedItem(name).value = value;
    }
    show();
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", restore);
  restore();
})();
