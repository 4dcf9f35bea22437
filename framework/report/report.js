"use strict";
// Adds filters to a page that is complete without them. All text stays text: nothing here parses HTML.
(function () {
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const later = (work) => {
    let timer;
    return () => { clearTimeout(timer); timer = setTimeout(work, 80); };
  };
  // Subtests of one case that a text filter lists: thousands of hits in many cases would take a while to lay out.
  const LISTED = 200;
  const numbers = new Intl.NumberFormat("en");
  all(".needs-js").forEach((element) => { element.hidden = false; });

  function cases() {
    const form = document.getElementById("case-filter");
    const rows = all("tr.case").map((row) => ({
      row,
      status: row.dataset.status,
      guest: row.closest(".guest").dataset.guest,
      details: row.querySelector("details"),
      wasOpen: Boolean(row.querySelector("details[open]")),
      head: (row.querySelector("summary, .plain") || row).textContent.toLowerCase(),
      subs: all(".subs li", row).map((item) => ({ item, text: item.textContent.toLowerCase() })),
      lists: all(".ids", row).map((element) => ({
        element, box: element.parentElement, label: element.parentElement.previousElementSibling, full: element.textContent, lower: null,
      })),
      narrowed: false,
    }));

    // Within a case that matches only by its subtests, show those and no others.
    function narrow(entry, text) {
      let hits = 0;
      for (const sub of entry.subs) {
        sub.item.hidden = !sub.text.includes(text);
        hits += sub.item.hidden ? 0 : 1;
      }
      for (const list of entry.lists) {
        list.lower = list.lower || list.full.toLowerCase();
        const found = !list.lower.includes(text) ? []
          : list.full.split("\n").filter((id) => id.toLowerCase().includes(text));
        const more = found.length > LISTED ? `\n… and ${numbers.format(found.length - LISTED)} more` : "";
        list.element.textContent = found.slice(0, LISTED).join("\n") + more;
        list.box.hidden = list.label.hidden = found.length === 0;
        hits += found.length;
      }
      entry.narrowed = true;
      if (hits) entry.details.open = true;
      return hits > 0;
    }

    function widen(entry) {
      if (!entry.narrowed) return;
      entry.narrowed = false;
      for (const sub of entry.subs) sub.item.hidden = false;
      for (const list of entry.lists) {
        list.element.textContent = list.full;
        list.box.hidden = list.label.hidden = false;
      }
      entry.details.open = entry.wasOpen;
    }

    function apply() {
      const text = form.elements.text.value.trim().toLowerCase();
      const status = form.elements.status.value;
      const guest = form.elements.guest.value;
      let shown = 0;
      for (const entry of rows) {
        let show = !guest || entry.guest === guest;
        if (status === "bad") show = show && (["fail", "flaky", "lost"].includes(entry.status));
        else if (status) show = show && entry.status === status;
        if (show && text && !entry.head.includes(text)) show = entry.details !== null && narrow(entry, text);
        else widen(entry);
        entry.row.hidden = !show;
        shown += show ? 1 : 0;
      }
      all(".guest").forEach((element) => { element.hidden = Boolean(guest) && element.dataset.guest !== guest; });
      form.querySelector(".count").textContent = `${numbers.format(shown)} of ${numbers.format(rows.length)} cases`;
    }
    form.addEventListener("input", later(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  function rules() {
    const form = document.getElementById("rule-filter");
    if (!form) return;
    const rows = all("#rules tbody tr").map((row) => ({ row, verdict: row.dataset.verdict, text: row.textContent.toLowerCase() }));
    function apply() {
      const text = form.elements.text.value.trim().toLowerCase();
      const verdict = form.elements.verdict.value;
      let shown = 0;
      for (const entry of rows) {
        const show = (!verdict || entry.verdict === verdict) && entry.text.includes(text);
        entry.row.hidden = !show;
        shown += show ? 1 : 0;
      }
      form.querySelector(".count").textContent = `${shown} of ${rows.length} rules`;
    }
    form.addEventListener("input", later(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  function consoles() {
    const search = document.getElementById("console-search");
    if (!search) return;
    const count = document.getElementById("console-count");
    const chunks = all(".chunk").map((chunk) => ({
      chunk,
      lines: Array.from(chunk.children, (line) => ({ line, console: line.dataset.c, text: null })),
    }));
    const total = chunks.reduce((sum, entry) => sum + entry.lines.length, 0);
    const toggles = all("[data-console]");
    function apply() {
      const text = search.value.toLowerCase();
      const on = new Set(toggles.filter((box) => box.checked).map((box) => box.dataset.console));
      let shown = 0;
      for (const entry of chunks) {
        let here = 0;
        for (const each of entry.lines) {
          let show = on.has(each.console);
          if (show && text) {
            if (each.text === null) each.text = each.line.textContent.toLowerCase();
            show = each.text.includes(text);
          }
          if (each.line.hidden === show) each.line.hidden = !show;
          here += show ? 1 : 0;
        }
        entry.chunk.hidden = here === 0;
        // The size a chunk is given while it is out of sight, so that the scroll bar stays honest.
        entry.chunk.style.containIntrinsicSize = `auto ${here * 1.2}rem`;
        shown += here;
      }
      count.textContent = shown === total ? `${numbers.format(total)} lines` : `${numbers.format(shown)} of ${numbers.format(total)} lines`;
    }
    search.addEventListener("input", later(apply));
    toggles.forEach((box) => box.addEventListener("change", apply));
    apply();
  }

  function copying() {
    const button = document.getElementById("copy");
    const command = document.getElementById("command");
    function select() {
      getSelection().selectAllChildren(command);
      button.textContent = "Selected";
    }
    button.addEventListener("click", () => {
      if (!navigator.clipboard) { select(); return; }
      navigator.clipboard.writeText(command.textContent).then(() => { button.textContent = "Copied"; }, select);
    });
  }

  cases();
  rules();
  consoles();
  copying();
}());
