
"use strict";
// Shows the values under the pointer in the legend of a chart. data-hover: ends of the X axis, first value and distance of the values on it,
// left and right end of the plot, width of the chart.
document.querySelectorAll("figure[data-hover]").forEach(function (figure) {
  var svg = figure.querySelector("svg");
  if (!svg) { return; }
  var n = figure.dataset.hover.split(" ").map(Number);
  var cursor = svg.querySelector(".cursor"), top = cursor.getAttribute("d").split("V")[1];
  var where = figure.querySelector(".legend .at");
  var items = Array.from(figure.querySelectorAll(".legend li[data-values]")).map(function (li) {
    return {output: li.querySelector("output"), values: li.dataset.values.split(" ")};
  });
  var short = function (v) { return String(Number(v.toPrecision(3))); };
  var units = {
    number: function (v) { return v >= 10000 ? String(Math.round(v)) : short(v); },
    share: function (v) { return short(100 * v) + " %"; },
    time: function (v) { return v >= 1 ? short(v) + " s" : v >= 0.001 ? short(v * 1e3) + " ms" : short(v * 1e6) + " µs"; }
  };
  var clock = function (v) {
    var s = Math.round(v), m = Math.floor(s / 60), h = Math.floor(m / 60);
    return (h ? h + "h" : "") + (m ? m % 60 + "m" : "") + s % 60 + "s";
  };
  var clear = function () {
    where.textContent = "";
    cursor.style.visibility = "hidden";
    items.forEach(function (item) { item.output.textContent = ""; });
  };
  svg.addEventListener("pointermove", function (event) {
    var box = svg.getBoundingClientRect();
    var place = (event.clientX - box.left) / box.width * n[6];
    var at = n[0] + (place - n[4]) / (n[5] - n[4]) * (n[1] - n[0]);
    var i = Math.round((at - n[2]) / n[3]);
    if (!items.some(function (item) { return item.values[i] !== undefined; })) { clear(); return; }
    var px = n[4] + (n[2] + i * n[3] - n[0]) / (n[1] - n[0]) * (n[5] - n[4]);
    cursor.setAttribute("d", "M" + px.toFixed(1) + " 30V" + top);
    cursor.style.visibility = "visible";
    var x = n[2] + i * n[3];
    where.textContent = "at " + (figure.dataset.x === "clock" ? clock(x) : Number((100 - 100 * Math.pow(10, -x)).toPrecision(Math.floor(x) + 3)) + " %");
    items.forEach(function (item) {
      var v = item.values[i];
      item.output.textContent = v === undefined || v === "-" ? "" : units[figure.dataset.y](Number(v));
    });
  });
  svg.addEventListener("pointerleave", clear);
});
