// Runs before the page is drawn, so that a chosen theme doesn't flash.
// "auto" follows the system; `store.js` writes the choice.
try {
  const { theme } = JSON.parse(localStorage.getItem("cygnet.settings")) ?? {};
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // No storage, or a damaged one: the system's theme.
}
