// Shows in the accordion what Python answers (hpsampler/panel.py, hpsampler/webui/panel_html.py): this file reads the
// page's controls, asks, and puts each text into its place. It computes nothing of the method.
//
// One request is under way at a time, by the event of a hidden gradio button; whatever changes meanwhile is asked for
// after it. Frameworks tell no script of a menu or a pasted picture that changes a control, so it also looks a few times
// a second.
const hpSamplerPanel = (() => {
    const [LOOK_MS, FRAME_MS, RELOAD_MS] = [150, 8, 5000];
    // from when an answer is late, and from when there is none
    const [LATE_MS, SILENT_MS] = [400, 15000];

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => (selector ? root().querySelector(selector) : null);

    // As a person would: frameworks only learn of a value by its event.
    function setValue(input, value) {
        input.value = value;
        input.dispatchEvent(new Event("input", {bubbles: true}));
        input.dispatchEvent(new Event("change", {bubbles: true}));
    }

    const typed = new Map();

    // What a control of the page holds: a switch, radio buttons, a number or a menu.
    function read(selector) {
        const block = find(selector);
        if (!block) return undefined;
        const input = block.matches("input") ? block : block.querySelector("input[type=number], input");
        if (!input) return undefined;
        if (input.type === "checkbox") return input.checked;
        if (input.type === "radio") {
            return block.querySelector("input:checked")?.closest("label").textContent.trim();
        }
        if (input.type === "number") return input.value.trim() === "" ? null : Number(input.value);
        // a menu's text is a filter while somebody types in it; what it last had stands until one is chosen
        if (document.activeElement !== input || !typed.has(selector)) typed.set(selector, input.value);
        return typed.get(selector);
    }

    class Panel {
        constructor(place) {
            this.place = place;
            this.id = `#${place.dataset.prefix}`;
            this.selectors = JSON.parse(place.dataset.page);
            this.texts = JSON.parse(place.dataset.texts);
            this.number = 0;
            this.asked = null;
            this.shown = {};
            this.silent = place.querySelector(".hps-silent");
            this.presets = this.slot("presets");
            place.addEventListener("click", (event) => this.press(event.target.closest("button[data-act]")));
            place.addEventListener("change", (event) => this.choose(event.target));
        }

        slot(name) {
            return this.place.querySelector(`[data-slot="${name}"]`);
        }

        talk() {
            return find(`${this.id}_talk textarea, ${this.id}_talk input`);
        }

        pageState() {
            const page = {img2img: "denoising" in this.selectors && !("hires" in this.selectors)};
            for (const [name, selector] of Object.entries(this.selectors)) page[name] = read(selector);
            if (typeof opts === "object") page.exact_steps = Boolean(opts.img2img_fix_steps);
            page.preset = this.preset;
            return page;
        }

        // What every control holds, as one text: a change of it is what there is to ask about.
        fingerprint() {
            const own = [...root().querySelectorAll(`${this.id} input, ${this.id}-checkbox input`)]
                .filter((input) => !this.place.contains(input) && !input.closest(`${this.id}_talk`))
                .map((input) => (input.type === "checkbox" ? input.checked : input.value));
            return JSON.stringify([own, this.pageState(), this.place.clientWidth]);
        }

        update() {
            const visible = this.place.offsetParent !== null;
            // what other tabs made meanwhile: calibrations, another model, presets
            if (visible && !this.visible) this.look = true;
            this.visible = visible;
            if (!visible || this.asked || !this.talk()) return;
            const seen = this.fingerprint();
            if (seen === this.seen && !this.look) return;
            this.seen = seen;
            this.send("ask", {look: Boolean(this.look)});
            this.look = false;
        }

        send(button, question) {
            const page = this.pageState();
            this.asked = {id: ++this.number, since: performance.now(), button};
            this.place.dataset.asked = this.number;
            const text = JSON.stringify({id: this.number, page, width: this.place.clientWidth, ...question});
            // while a menu of ours has the focus, only gradio knows whether its text is chosen or a filter
            const menu = `${this.id} input:not([type=number], [type=range], [type=checkbox])`;
            const plain = button === "ask" && !question.look && !document.activeElement?.matches(menu);
            if (plain && this.event()) this.post(this.asked, text);
            else this.click(button, text);
            this.wait();
        }

        click(button, text) {
            setValue(this.talk(), text);
            find(`${this.id}_${button}`).click();
        }

        // The event of the hidden button "ask", as the page itself describes it; null where it does not.
        event() {
            const {components = [], dependencies = []} = window.gradio_config || {};
            const button = components.find((each) => each.props?.elem_id === `${this.id.slice(1)}_ask`);
            const at = dependencies.findIndex((each) => button && (each.targets || []).flat().includes(button.id));
            return at < 0 || this.refused ? null : {at, inputs: dependencies[at].inputs, components};
        }

        // The same request as a press of the button makes, without gradio's redraw of its whole page (some 80 ms).
        post(asked, text) {
            const {at, inputs, components} = this.event();
            const data = inputs.map((id) => {
                const name = `#${components.find((each) => each.id === id).props.elem_id}`;
                return name === `${this.id}_talk` ? text : read(name);
            });
            const body = JSON.stringify({data, fn_index: at});
            fetch("run/predict", {method: "POST", headers: {"Content-Type": "application/json"}, body}).then(async (answer) => {
                if (answer.ok) asked.reply = (await answer.json()).data[0];
                else if ((this.refused = this.asked === asked)) this.click("ask", text);
                if (this.asked === asked) this.wait();
            }, () => {});
        }

        wait() {
            clearTimeout(this.timer);
            if (!this.asked) return;
            const text = this.asked.reply ?? this.talk().value;
            const late = performance.now() - this.asked.since;
            const answer = text === this.asked.text ? {} : JSON.parse(text || "{}");
            this.asked.text = text;
            if (answer.answers === this.asked.id) {
                if (this.asked.button === "act") this.place.dataset.done = this.asked.id;
                this.asked = null;
                this.mark("");
                this.show(answer);
                delete this.place.dataset.asked;
                this.update();
                return;
            }
            if (late > LATE_MS) this.mark("waiting");
            if (late > SILENT_MS) {
                this.mark("silent");
                this.asked = null;
                this.seen = "";
                delete this.place.dataset.asked;
                return;
            }
            this.timer = setTimeout(() => this.wait(), FRAME_MS);
        }

        // The last plot stays, and is marked while it is not of what is set now.
        mark(state) {
            if (this.silent.dataset.state === "silent" && state === "waiting") return;
            this.place.classList.toggle("hps-late", state !== "");
            this.silent.dataset.state = state;
            this.silent.hidden = !state;
            this.silent.textContent = this.texts[state] || "";
        }

        show(answer) {
            for (const [name, html] of Object.entries(answer.slots)) this.fill(name, html);
            if (answer.sigmas) this.slot("figure").dataset.sigmas = JSON.stringify(answer.sigmas);
            // a button's answer says which is chosen now; one that was just saved is in the menu with the next answer
            if ("needs" in answer ? answer.preset !== undefined : this.preset === undefined) this.preset = answer.preset;
            if (document.activeElement !== this.presets) this.presets.value = this.preset;
            for (const [name, said] of Object.entries(answer.controls || {})) this.beside(name, said);
            for (const [suffix, title] of Object.entries(answer.groups || {})) {
                const label = find(`${this.id}_${suffix} > .label-wrap > span`);
                if (label) label.dataset.note = title;
            }
            if (answer.waits) setTimeout(() => (this.look = true), RELOAD_MS);
            if (answer.file) {
                const href = `data:application/json;charset=utf-8,${encodeURIComponent(answer.file.text)}`;
                Object.assign(document.createElement("a"), {href, download: answer.file.name}).click();
            }
            if (answer.needs) {
                this.unfold(true);
                this.slot(answer.needs).focus();
            }
        }

        // Only what has changed, and the focus stays where it was.
        fill(name, html) {
            if (this.shown[name] === html) return;
            const slot = this.slot(name);
            if (slot === document.activeElement) return;
            const buttons = () => [...slot.querySelectorAll("button")];
            const at = buttons().indexOf(document.activeElement);
            this.shown[name] = html;
            slot.innerHTML = html;
            if (at >= 0 && buttons()[at]) buttons()[at].focus();
        }

        // Greyed, but still there to be set: the sampler may be changed after it.
        beside(name, said) {
            const block = find(`${this.id}_${name}`);
            if (!block) return;
            let text = block.querySelector(":scope > .hps-beside");
            if (!text) {
                const id = `${this.place.dataset.prefix}_${name}_beside`;
                text = Object.assign(document.createElement("p"), {className: "hps-beside", id});
                block.append(text);
            }
            if (text.textContent !== said.text) text.textContent = said.text;
            block.dataset.idle = said.idle;
            for (const kind of ["idle", "changed", "wrong"]) block.classList.toggle(`hps-${kind}`, Boolean(said[kind]));
            const by = said.by ? `${this.place.dataset.prefix}_${said.by}_beside` : text.id;
            for (const input of block.querySelectorAll("input")) {
                // gradio leaves a slider's two inputs without a name
                if (!input.labels?.[0]?.textContent.includes(said.label)) input.setAttribute("aria-label", said.label);
                input.setAttribute("aria-invalid", String(said.wrong));
                if (said.text || said.by) input.setAttribute("aria-describedby", by);
                else input.removeAttribute("aria-describedby");
                if (input.type !== "range" && input.type !== "number") continue;
                input.dataset.highest = input.dataset.highest || input.max;
                input.max = said.highest === null ? input.dataset.highest : said.highest;
            }
        }

        press(button) {
            if (!button) return;
            const {act, steps, cfg, tab} = button.dataset;
            if (act === "steps") {
                setNumber(this.selectors.steps, steps);
                if (cfg) setNumber(this.selectors.cfg, cfg);
            } else if (act === "more") {
                this.unfold(this.slot("manage").hidden);
            } else if (act === "auto") {
                find(`${this.id}_auto`).click();
            } else if (act === "tab") {
                const tabs = [...root().querySelectorAll("#tabs > .tab-nav button, #tabs > div button")];
                tabs.find((each) => each.textContent.trim() === tab)?.click();
            } else {
                this.act(act);
            }
        }

        unfold(open) {
            this.slot("manage").hidden = !open;
            this.place.querySelector("[data-act=more]").setAttribute("aria-expanded", String(open));
        }

        choose(input) {
            if (input === this.presets) this.act("load", (this.preset = input.value));
            if (input.type !== "file" || !input.files.length) return;
            input.files[0].text().then((text) => this.act("import", text));
            input.value = "";
        }

        // What a button does to presets and controls; it takes its turn after what is asked.
        act(act, text = "") {
            if (this.asked) {
                setTimeout(() => this.act(act, text), FRAME_MS);
                return;
            }
            const [name, sure] = [this.slot("name").value, this.slot("sure").checked];
            if (act === "delete") this.slot("sure").checked = false;
            this.seen = "";
            this.send("act", {act, name, sure, text, preset: this.preset});
        }
    }

    function setNumber(selector, value) {
        for (const input of root().querySelectorAll(`${selector} input`)) setValue(input, value);
    }

    function start() {
        const places = [...root().querySelectorAll(".hpsampler-panel")];
        if (!places.length || places.some((place) => place.dataset.drawn)) return places.length > 0;
        const panels = places.map((place) => new Panel(place));
        places.forEach((place) => (place.dataset.drawn = "yes"));
        const update = () => panels.forEach((panel) => panel.update());
        // at once while a slider is dragged, after the page's own handlers; the rest changes without telling
        for (const event of ["input", "change"]) {
            document.addEventListener(event, () => setTimeout(update, 0), {capture: true});
        }
        setInterval(() => document.hidden || update(), LOOK_MS);
        // another model, another setting
        if (typeof onOptionsChanged === "function") onOptionsChanged(() => panels.forEach((panel) => (panel.look = true)));
        return true;
    }

    if (typeof onUiLoaded === "function") {
        onUiLoaded(start);
    } else {
        const trying = setInterval(() => start() && clearInterval(trying), 200);
    }
    return {start};
})();
