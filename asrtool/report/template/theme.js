// Light and dark: what the system says, unless the button says otherwise; and small helpers for the document.

/** An element with attributes, listeners (on...) and children; null children are left out. */
function el(name, attributes = {}, ...children) {
  const node = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const $ = (id) => document.getElementById(id);
const redraws = new Set(); // functions that draw with colours that are not CSS's

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function startTheme() {
  const order = ["auto", "light", "dark"], key = "asrtool-report-theme";
  let now = "auto";
  try {
    now = order.includes(localStorage.getItem(key)) ? localStorage.getItem(key) : "auto";
  } catch { /* a browser may forbid files to remember anything */ }
  const show = () => {
    if (now === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", now);
    $("theme").textContent = `Theme: ${now}`;
    for (const redraw of redraws) redraw();
  };
  $("theme").addEventListener("click", () => {
    now = order[(order.indexOf(now) + 1) % order.length];
    try {
      localStorage.setItem(key, now);
    } catch { /* as above */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}
