// Runs before the first paint, so that a chosen theme does not flash; `app.js` has the button.
try {
  const chosen = JSON.parse(localStorage.getItem("puna.theme"));
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch (error) {
  console.warn(error);
}
