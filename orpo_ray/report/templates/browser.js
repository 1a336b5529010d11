"use strict";
{
  // Every text of a prompt or a model goes through textContent, so none of it can become markup.
  const PAGE = 25;
  const part = (name) => document.getElementById(`browser-${name}`);
  const data = JSON.parse(part("data").textContent);
  const [a, b, judge, round, order, text] = ["a", "b", "judge", "round", "order", "text"].map(part);
  const ORDERS = {
    prompt: () => 0,
    a: (x, y) => y.margin - x.margin,
    b: (x, y) => x.margin - y.margin,
    close: (x, y) => Math.abs(x.margin) - Math.abs(y.margin),
  };
  const sides = data.models.length > 1 ? [a, b] : [a];
  let rows = []; // what the controls leave, in order: {entry, pair: [response or null, ...], margin}
  let first = 0;
  let pairwise = false; // whether the chosen judge was shown two answers at a time

  function make(tag, className, content, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (content !== null) element.textContent = content;
    element.append(...children);
    return element;
  }

  function fill(select, labels, values) {
    const chosen = select.value;
    select.replaceChildren(...labels.map((label, i) => new Option(label, values ? values[i] : i)));
    if (chosen) select.value = chosen;
  }

  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const reward = (response) => (response ? response.rewards[judge.value] ?? null : null);
  const shown = (value, digits = Number.isInteger(value) ? 0 : 2) => value.toFixed(digits).replace("-", "−");
  // What the chosen judge said of a prompt in the chosen round: see evaluation_browser.entries.
  const verdicts = (entry, model, other) =>
    entry.verdicts
      .filter((each) => each[0] === Number(judge.value) && each[1] === Number(round.value))
      .filter((each) => (other === undefined ? each[2] === model && each[3] === null : each[3] !== null && [model, other].includes(each[2]) && [model, other].includes(each[3])));
  const compares = () => data.prompts.some((entry) => entry.verdicts.some((each) => each[0] === Number(judge.value) && each[3] !== null));

  const mean = (values) => values.reduce((sum, each) => sum + each, 0) / values.length;

  function by(rows, key) {
    const found = new Map();
    for (const row of rows) found.set(key(row), [...(found.get(key(row)) ?? []), row]);
    return [...found.values()];
  }

  // As the numbers are made: the mean of turns, each of its orders, each of its judgings. A turn of which one order could
  // not be read has none.
  function outcome(said, model) {
    const order = (each) => each[5] === null || each[5] === (each[2] === model);
    const read = (rows) => rows.filter((each) => each[4] !== null).map((each) => (each[2] === model ? each[4] : 1 - each[4]));
    const turns = by(said, (each) => each[7]).map((turn) => mean(by(turn, order).map((rows) => mean(read(rows)))));
    return mean(turns.filter((each) => !Number.isNaN(each)));
  }

  function apart(entry, pair) {
    if (sides.length > 1 && pairwise) {
      const [model, other] = sides.map((side) => Number(side.value));
      return outcome(verdicts(entry, model, other), model) - 0.5;
    }
    const [ours, theirs = null] = pair.map(reward);
    return ours === null || theirs === null ? NaN : ours - theirs;
  }

  const sign = (margin) => (Math.abs(margin) <= data.tie ? 0 : Math.sign(margin)); // NaN where one has no reward

  function select() {
    const wanted = text.value.trim().toLowerCase();
    pairwise = compares();
    rows = [];
    for (const entry of data.prompts) {
      const pair = sides.map((model) => entry.responses[model.value][round.value]);
      const texts = [entry.text, ...pair.map((response) => (response ? response.text : ""))];
      if (wanted && !texts.some((each) => each.toLowerCase().includes(wanted))) continue;
      rows.push({ entry, pair, margin: apart(entry, pair) });
    }
    if (order.value !== "prompt") {
      const unscored = rows.filter((row) => Number.isNaN(row.margin));
      rows = rows.filter((row) => !Number.isNaN(row.margin)).sort(ORDERS[order.value]).concat(unscored);
    }
    first = 0;
    show();
  }

  function show() {
    const page = rows.slice(first, first + PAGE);
    const signs = rows.map((row) => sign(row.margin));
    const count = (wanted) => signs.filter((each) => Object.is(each + 0, wanted)).length;
    const [nameA, nameB] = [a, b].map((model) => data.models[model.value]);
    const said = [`${nameA} wins ${count(1)}`, plural(count(0), "tie"), `${nameB} wins ${count(-1)}`];
    if (count(NaN)) said.push(`${count(NaN)} ${pairwise ? "without a verdict" : "without both rewards"}`);
    const total = data.prompts.length;
    part("status").textContent =
      `${rows.length.toLocaleString("en")} of ${plural(total, "prompt")}` + (rows.length && sides.length > 1 ? `: ${said.join(", ")}.` : ".");
    part("list").replaceChildren(...page.map(item));
    part("page").textContent = rows.length ? `${first + 1}–${first + page.length} of ${rows.length}` : "none";
    part("previous").disabled = first === 0;
    part("next").disabled = first + PAGE >= rows.length;
  }

  function item({ entry, pair, margin }) {
    const winner = sign(margin);
    const head = make("div", "margin", `Prompt ${entry.prompt}`);
    if (!Number.isNaN(margin)) {
      const names = [a, b].map((model) => data.models[model.value]);
      const by = pairwise ? `with ${(50 + 100 * Math.abs(margin)).toFixed(0)}%` : `by ${shown(Math.abs(margin))}`;
      head.textContent += winner === 0 ? " · a tie" : ` · ${names[winner > 0 ? 0 : 1]} ${by}`;
    }
    const answers = make("div", "answers", null);
    sides.forEach((model, side) => {
      const index = Number(model.value);
      const won = winner === (side === 0 ? 1 : -1);
      answers.append(answer(data.models[index], pair[side], won, make("span", `swatch model-${index % 8}`, null)));
    });
    const element = make("li", "", null, head, prompt(entry.text), answers);
    const words = said(entry);
    if (words.length) element.append(make("details", "own", null, make("summary", "", "What the judge said"), ...words));
    if (entry.data.length) {
      const own = make("details", "own", null, make("summary", "", "The data's own responses"));
      // Built when first opened: most never are.
      own.addEventListener("toggle", () => {
        if (own.childElementCount > 1) return;
        const texts = entry.data.map((response) => answer(response.label, response, false, ""));
        own.append(make("div", "answers", null, ...texts));
      });
      element.append(own);
    }
    return element;
  }

  // A line for each verdict on what is shown, and the judge's own words.
  function said(entry) {
    const models = sides.map((side) => Number(side.value));
    const found = pairwise && models.length > 1 ? verdicts(entry, ...models) : models.flatMap((model) => verdicts(entry, model));
    return found.map(([, , model, other, value, shownFirst, words, at]) => {
      const [name, against] = [model, other].map((each) => data.models[each]);
      const first = shownFirst === null ? "nobody was asked: the answers are the same" : `${shownFirst ? name : against} shown first`;
      const verdict = other === null ? (value === null ? "no rating could be read" : `rated ${shown(value)}`) : value === null ? "no verdict could be read" : `${(100 * value).toFixed(0)}% for ${name}`;
      const line = [other === null ? name : first, verdict, entry.verdicts.some((each) => each[7] > 1) ? `turn ${at}` : ""];
      const body = make("p", "text", words ?? "");
      body.dir = "auto";
      return make("div", "", null, make("p", "margin", line.filter(Boolean).join(" · ")), body);
    });
  }

  function prompt(content) {
    const element = make("div", "prompt text", content);
    element.dir = "auto";
    return element;
  }

  function answer(label, response, won, mark) {
    const head = make("h4", "", null, mark, label);
    if (!response) return make("div", "", null, head, make("p", "soft", "not generated"));
    const value = reward(response);
    if (!pairwise) head.append(make("span", "score", value === null ? "not scored" : shown(value)));
    if (won) head.append(make("span", "badge won", "winner"));
    if (response.tokens !== null && response.tokens !== undefined) head.append(make("span", "", plural(response.tokens, "token")));
    if (response.ended === "length") head.append(make("span", "badge", "cut"));
    const content = response.text.trim();
    const body = content ? make("p", "text", content) : make("p", "soft", "(empty)");
    body.dir = "auto";
    return make("div", won ? "winner" : "", null, head, body);
  }

  // A and B are never the same model: choosing one for both swaps the two.
  function choose(changed, other) {
    if (changed.value === other.value) other.value = changed.dataset.before;
    for (const each of [a, b]) each.dataset.before = each.value;
    const [nameA, nameB] = [a, b].map((model) => data.models[model.value]);
    const names = ["as in the data", `${nameA} ahead by most`, `${nameB} ahead by most`, "closest first"];
    fill(order, names, Object.keys(ORDERS));
    select();
  }

  function turn(pages, button, other) {
    first += pages * PAGE;
    show();
    (button.disabled ? other : button).focus({ preventScroll: true });
    document.getElementById("browser").scrollIntoView();
  }

  for (const model of [a, b]) fill(model, data.models);
  fill(judge, data.judges);
  fill(round, Array.from({ length: data.rounds }, (_, i) => String(i + 1)));
  [a, b].forEach((model, i) => {
    model.value = String(Math.max(0, data.models.indexOf(data.best[i] ?? data.best[0])));
  });
  a.addEventListener("change", () => choose(a, b));
  b.addEventListener("change", () => choose(b, a));
  for (const control of [judge, round, order]) control.addEventListener("change", select);
  let waiting;
  text.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 120);
  });
  part("previous").addEventListener("click", () => turn(-1, part("previous"), part("next")));
  part("next").addEventListener("click", () => turn(1, part("next"), part("previous")));
  for (const control of [b, order]) control.parentElement.hidden = sides.length === 1;
  for (const name of ["controls", "status", "pages"]) part(name).hidden = false;
  for (const each of [a, b]) each.dataset.before = each.value;
  choose(a, { value: null });
}
