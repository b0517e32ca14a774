"use strict";

const $ = (id) => document.getElementById(id);
const K = 20;
const WHY = 8; // number of contributions that are shown

// Whose list is shown: a user of the service, or a history that only this page knows.
let shown = { user: null, history: [] };
let key = "";
let asked = 0; // number of the latest request; answers to earlier ones are ignored

async function ask(path, body) {
  const options = { headers: key ? { Authorization: `Bearer ${key}` } : {} };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const answer = await response.json();
  if (response.status === 401) $("key").hidden = false;
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Run an action and show its error message if it fails.
async function run(action) {
  try {
    await action();
  } catch (error) {
    $("status").textContent = error.message;
  }
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(text, label, action) {
  const made = element("button", "", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", () => run(action));
  return made;
}

const name = (item) => item.title || item.item;

async function showHistory() {
  let items = shown.history;
  if (shown.user !== null) items = (await ask(`history?user=${encodeURIComponent(shown.user)}`)).items;
  $("history-name").textContent = shown.user === null ? "History" : `History of user ${shown.user}`;
  const rows = items.map((item, place) => {
    const row = element("div", "row");
    row.append(element("span", "title", name(item)));
    if (shown.user === null) {
      row.append(button("Remove", `Remove ${name(item)}`, () => {
        shown.history.splice(place, 1);
        return show();
      }));
    }
    const entry = element("li");
    entry.append(row);
    return entry;
  });
  $("history").replaceChildren(...rows.reverse());
}

async function show() {
  const number = ++asked;
  const { user, history } = shown;
  await showHistory();
  const empty = user === null && history.length === 0;
  $("hint").hidden = !empty;
  if (empty) {
    $("list").replaceChildren();
    $("status").textContent = "";
    return;
  }
  const answer = user === null
    ? await ask("recommend_history", { histories: [history.map((item) => item.item)], k: K, rule: $("rule").value })
    : await ask("recommend", { users: [user], k: K });
  if (number !== asked) return;
  const items = answer.lists[0].items;
  $("list").replaceChildren(...items.map(listed));
  $("status").textContent = answer.unknown_users.length
    ? `User ${user} is unknown.`
    : `${items.length} items for ${user === null ? "this history" : `user ${user}`}.`;
}

function listed(item) {
  const entry = element("li");
  const row = element("div", "row");
  row.append(
    element("span", "title", name(item)),
    element("span", "score", item.score.toFixed(3)),
    button("Why?", `Why ${name(item)}?`, () => explain(entry, item)),
    button("Add", `Add ${name(item)} to the history`, () => add(item)),
  );
  entry.append(row);
  return entry;
}

async function add(item) {
  if (shown.user === null) shown.history.push(item);
  else await ask("events", { events: [{ user: shown.user, item: item.item }] });
  await show();
}

async function explain(entry, item) {
  const open = entry.querySelector(".why");
  if (open) {
    open.remove();
    return;
  }
  const whose = shown.user === null
    ? { history: shown.history.map((one) => one.item), rule: $("rule").value }
    : { user: shown.user };
  const { contributions, bias, residual } = await ask("explain", { item: item.item, ...whose });
  const hasLocal = contributions.some((part) => part.local !== 0);
  const split = (part) => (hasLocal ? `embedding ${part.tower.toFixed(3)}, pair ${part.local.toFixed(3)}` : "");
  const rows = contributions.slice(0, WHY).map((part) => [name(part), part.value, split(part)]);
  const rest = contributions.slice(WHY).reduce((sum, part) => sum + part.value, 0);
  if (contributions.length > WHY) rows.push([`${contributions.length - WHY} others`, rest]);
  if (bias) rows.push(["popularity of the item", bias]);
  if (Math.abs(residual) > 5e-4) rows.push(["not explained by the history", residual]);
  const greatest = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-9);
  const list = element("ul", "why");
  list.setAttribute("aria-label", `Why ${name(item)}`);
  for (const [text, value, about] of rows) {
    const line = element("li");
    if (about) line.title = about;
    const bar = element("div", value < 0 ? "bar less" : "bar");
    bar.style.width = `${(100 * Math.abs(value)) / greatest}%`;
    line.append(element("span", "", text), bar, element("span", "score", value.toFixed(3)));
    list.append(line);
  }
  entry.append(list);
}

// Run an action once the typing pauses.
function whileTyping(input, action) {
  let timer;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => run(action), 150);
  });
}

async function findItems() {
  const text = $("search-text").value.trim();
  const { items } = text ? await ask(`items?q=${encodeURIComponent(text)}`) : { items: [] };
  $("found").replaceChildren(...items.map((item) => {
    const entry = element("li", "row");
    entry.append(element("span", "title", name(item)), button("Add", `Add ${name(item)}`, () => {
      if (shown.user !== null) shown = { user: null, history: [] };
      shown.history.push(item);
      $("search-text").value = "";
      $("found").replaceChildren();
      $("search-text").focus();
      return show();
    }));
    return entry;
  }));
  if (text && !items.length) $("status").textContent = `No title contains “${text}”.`;
}

async function findUsers() {
  const { users } = await ask(`users?q=${encodeURIComponent($("user-text").value.trim())}`);
  $("users").replaceChildren(...users.map((user) => {
    const option = element("option");
    option.value = user;
    return option;
  }));
}

async function start() {
  const { users, items, bundle } = await ask("health");
  $("about").textContent = `${users.toLocaleString()} users, ${items.toLocaleString()} items`;
  const [alike, trained, recent] = $("rule").options;
  const { rule, alpha } = bundle.aggregation || {};
  if (rule === "moving") alike.text = "in order, later ones slightly more";
  trained.hidden = trained.disabled = !alpha; // all items have the same weight in training
  recent.hidden = recent.disabled = !bundle.ordered; // the data have no times
  $("how").hidden = trained.hidden && recent.hidden;
  await findUsers();
}

$("user").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = $("user-text").value.trim();
  if (user) {
    shown = { user, history: [] };
    run(show);
  }
});
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  run(findItems);
});
$("how").addEventListener("submit", (event) => event.preventDefault());
$("rule").addEventListener("change", () => {
  if (shown.user === null) run(show);
});
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key-text").value;
  $("key").hidden = true;
  run(start);
});
$("clear").addEventListener("click", () => {
  shown = { user: null, history: [] };
  $("user-text").value = "";
  run(show);
});
whileTyping($("search-text"), findItems);
whileTyping($("user-text"), findUsers);
run(start);
