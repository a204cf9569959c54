// Corrects what GraphiQL renders where assistive technology would not understand it.

/**
 * Correct the elements below `root`, now and whenever they change.
 *
 * - A tab is the button with the tab's name, not the list item around it, because a tab must not contain buttons. The
 *   button that closes it is for pointers; the Delete key closes a focused tab (WAI-ARIA Authoring Practices).
 * - A tab without a named operation is named by its number.
 * - The list of operation types in the query builder has a name.
 */
export function correctAccessibility(root) {
  let planned = false;
  const plan = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      root.querySelectorAll(".graphiql-tab").forEach(correctTab);
      root.querySelectorAll(".graphiql-explorer-actions select").forEach((list) => set(list, "aria-label", "Add new"));
    });
  };
  new MutationObserver(plan).observe(root, { subtree: true, childList: true, attributeFilter: ["aria-selected", "title"] });
  root.addEventListener("keydown", ({ key, target }) => {
    if (key !== "Delete" || !target.matches(".graphiql-tab-button")) return;
    target.nextElementSibling?.click();
    requestAnimationFrame(() => root.querySelector(".graphiql-tab-active .graphiql-tab-button")?.focus());
  });
  plan();
}

function correctTab(item, at) {
  const tab = item.querySelector(".graphiql-tab-button");
  const close = item.querySelector(".graphiql-tab-close");
  set(item, "role", "presentation");
  set(item, "aria-selected", null);
  set(tab, "role", "tab");
  set(tab, "aria-selected", String(item.classList.contains("graphiql-tab-active")));
  // The number is content that only the style adds.
  set(tab, "aria-label", tab.title === "<untitled>" ? String(at + 1) : `${at + 1} ${tab.title}`);
  if (close) {
    set(close, "aria-hidden", "true");
    set(close, "tabindex", "-1");
  }
}

/** Set or remove (null) an attribute; an unnecessary write would notify the observer again. */
function set(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}
