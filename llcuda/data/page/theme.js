// Runs before the page is drawn, so that a chosen theme does not flash.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("theme")) ?? "system";
} catch {
  document.documentElement.dataset.theme = "system"; // the browser keeps nothing
}
