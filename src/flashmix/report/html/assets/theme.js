// The theme: the system's, light or dark; remembered where the browser lets a file remember.
"use strict";
const themes = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try {
    return localStorage.getItem("flashmix-theme");
  } catch {
    return null;
  }
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  themeButton.textContent = `Theme: ${name}`;
  try {
    localStorage.setItem("flashmix-theme", name);
  } catch {
    // A browser that forgets shows the system's theme next time.
  }
  document.dispatchEvent(new Event("theme"));
}

function isDark() {
  const name = document.documentElement.dataset.theme;
  return name === "dark" || (name !== "light" && systemDark.matches);
}

themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme;
  setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
});
systemDark.addEventListener("change", () => document.dispatchEvent(new Event("theme")));
setTheme(themes.includes(remembered()) ? remembered() : "auto");
