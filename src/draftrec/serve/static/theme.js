// Before the page is drawn, so that a dark page never flashes white. A script of its own, because
// the page's policy allows no inline code.
(() => {
  let wanted = "auto";
  try {
    wanted = localStorage.getItem("draftrec-theme") || "auto";
  } catch {
    // Storage may be forbidden; the system's choice is a good one.
  }
  if (wanted !== "auto") document.documentElement.dataset.theme = wanted;
})();
