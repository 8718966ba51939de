// Shows in the accordion what Python answers (hpsampler/panel/, hpsampler/webui/panel_html.py): reads the page's controls,
// asks, and puts each text into its place. It computes nothing of the method. One request is under way at a time, by the
// event of a hidden gradio button, and what changes meanwhile is asked for after it. Frameworks tell no script of a menu
// or a pasted picture that changes a control, so it also looks several times a second.
(() => {
    // the page loads the scripts of a second copy of the extension too
    if (window.hpsamplerPanel) return;
    window.hpsamplerPanel = true;
    // an answer is late, then there is none; after a failed network, or without a model, it asks again
    const [LOOK_MS, FRAME_MS, LATE_MS, SILENT_MS, AGAIN_MS] = [150, 8, 400, 15000, 3000];
    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => root().querySelector(selector);
    const findAll = (selector) => [...root().querySelectorAll(selector)];

    // As a person would: frameworks only learn of a value by its event.
    function setValue(input, value) {
        input.value = value;
        for (const event of ["input", "change"]) input.dispatchEvent(new Event(event, {bubbles: true}));
    }

    const typed = new Map();
    // What a control of the page holds: a switch, radio buttons, a number or a menu.
    function read(selector) {
        const input = find(`${selector} input`);
        if (!input) return undefined;
        if (input.type === "checkbox") return input.checked;
        if (input.type === "radio") return find(`${selector} input:checked`)?.closest("label").textContent.trim();
        if (input.type === "number") return input.value.trim() === "" ? null : Number(input.value);
        // a menu's text is a filter while somebody types in it; what it last had stands until one is chosen
        if (document.activeElement !== input || !typed.has(selector)) typed.set(selector, input.value);
        return typed.get(selector);
    }

    class Panel {
        constructor(place) {
            [this.place, this.id, this.number, this.shown, this.todo] = [place, `#${place.dataset.prefix}`, 0, {}, []];
            [this.selectors, this.texts] = [JSON.parse(place.dataset.page), JSON.parse(place.dataset.texts)];
            this.slot = (name) => place.querySelector(`[data-slot="${name}"]`);
            this.talk = () => find(`${this.id}_talk textarea, ${this.id}_talk input`);
            [this.event, this.silent] = [this.eventOfAsk(), place.querySelector(".hps-silent")];
            this.presets = this.slot("presets");
            // whether what is shown is of what is set now: a test waits for it rather than for some time
            place.settled = () => place.offsetParent === null
                || (this.visible && !this.asked && !this.look && this.seen === this.fingerprint());
            place.addEventListener("click", ({target}) => this.press(target.closest("button[data-act]")?.dataset || {}));
            place.addEventListener("change", ({target}) => this.choose(target));
        }

        pageState() {
            const page = {img2img: "denoising" in this.selectors && !("hires" in this.selectors), preset: this.preset};
            for (const [name, selector] of Object.entries(this.selectors)) if (name !== "drawn") page[name] = read(selector);
            if (typeof opts === "object") page.exact_steps = Boolean(opts.img2img_fix_steps);
            return page;
        }

        // What every control holds, as one text: a change of it is what there is to ask about.
        fingerprint() {
            const own = findAll(`${this.id} input, ${this.id}-checkbox input`)
                .filter((input) => !this.place.contains(input) && !input.closest(`${this.id}_talk`))
                .map((input) => (input.type === "checkbox" ? input.checked : input.value));
            return JSON.stringify([own, this.pageState(), this.place.clientWidth]);
        }

        update() {
            const visible = this.place.offsetParent !== null;
            // what stands under the pictures changes when some were drawn, and some hosts load a model only then
            const drawn = findAll(this.selectors.drawn || "hps-none").map((each) => each.textContent).join();
            // other tabs make calibrations, presets, another model
            if (drawn !== this.drawn || (visible && !this.visible)) this.look = true;
            [this.drawn, this.visible] = [drawn, visible];
            if (!visible || this.asked || !this.talk()) return;
            const seen = this.fingerprint();
            if (this.todo.length) this.send("act", this.todo.shift());
            else if (seen !== this.seen || this.look) {
                this.send("ask", {look: Boolean(this.look)});
                [this.seen, this.look] = [seen, false];
            }
        }

        send(button, question) {
            const asked = (this.asked = {id: ++this.number, since: performance.now(), button});
            const text = JSON.stringify({id: asked.id, page: this.pageState(), width: this.place.clientWidth, ...question});
            // while a menu of ours has the focus, only gradio knows whether its text is chosen or a filter
            const menu = `${this.id} input:not([type=number], [type=range], [type=checkbox])`;
            asked.posted = button === "ask" && !question.look && !document.activeElement?.matches(menu) && this.event;
            if (asked.posted) this.post(asked, text);
            else this.click(button, text);
            this.wait(asked);
        }

        click(button, text) {
            setValue(this.talk(), text);
            find(`${this.id}_${button}`).click();
        }

        // The event of the hidden button "ask", as the page itself describes it; undefined where it does not.
        eventOfAsk() {
            const {components = [], dependencies = []} = window.gradio_config || {};
            const nameOf = (id) => `#${components.find((each) => each.id === id)?.props?.elem_id}`;
            const ask = components.find((each) => `#${each.props?.elem_id}` === `${this.id}_ask`);
            const at = dependencies.findIndex((each) => ask && (each.targets || []).flat().includes(ask.id));
            return at < 0 ? undefined : {fn_index: at, inputs: dependencies[at].inputs.map(nameOf)};
        }

        // The same request as a press of the button makes, without gradio's redraw of its page (80 ms). It is waited for.
        async post(asked, text) {
            const data = this.event.inputs.map((name) => (name === `${this.id}_talk` ? text : read(name)));
            const [headers, body] = [{"Content-Type": "application/json"}, {data, fn_index: this.event.fn_index}];
            const [sent, signal] = [JSON.stringify(body), AbortSignal.timeout(4 * SILENT_MS)];
            const answer = await fetch("run/predict", {method: "POST", headers, body: sent, signal}).catch(() => undefined);
            if (answer?.ok) {
                asked.reply = (await answer.json()).data[0];
                this.wait(asked);
            } else if (answer) {
                this.event = asked.posted = undefined;
                this.click("ask", text);
            } else {
                if (this.asked === asked) this.mark("silent");
                setTimeout(() => this.forget(asked), AGAIN_MS);
            }
        }

        wait(asked) {
            if (this.asked !== asked) return;
            const answer = JSON.parse(asked.reply ?? (this.talk().value || "{}"));
            const late = performance.now() - asked.since;
            if (answer.answers === asked.id) {
                if (asked.button === "act") this.place.dataset.done = asked.id;
                this.asked = undefined;
                this.mark("");
                this.show(answer);
                this.update();
            } else {
                if (late > LATE_MS) this.mark(late > SILENT_MS ? "silent" : "waiting");
                if (late > SILENT_MS && !asked.posted) this.forget(asked);
                setTimeout(() => this.wait(asked), FRAME_MS);
            }
        }

        // What is set then is asked for anew.
        forget(asked) {
            if (this.asked === asked) [this.asked, this.seen] = [undefined, ""];
        }

        // The last plot stays, and is marked while it is not of what is set now.
        mark(state) {
            if (state === "waiting" && this.silent.textContent) return;
            this.place.classList.toggle("hps-late", state !== "");
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
                find(`${this.id}_${suffix} > .label-wrap > span`)?.setAttribute("data-note", title);
            }
            if (answer.waits) setTimeout(() => (this.look = true), AGAIN_MS);
            if (answer.file) Object.assign(document.createElement("a"), answer.file).click();
            if (answer.needs) this.unfold(true, answer.needs);
        }

        // Only what has changed, and the focus stays where it was.
        fill(name, html) {
            const slot = this.slot(name);
            if (this.shown[name] === html || slot === document.activeElement) return;
            const at = [...slot.querySelectorAll("button")].indexOf(document.activeElement);
            this.shown[name] = html;
            slot.innerHTML = html;
            slot.querySelectorAll("button")[at]?.focus();
        }

        // Greyed, but still there to be set: the sampler may be changed after it.
        beside(name, said) {
            const block = find(`${this.id}_${name}`);
            if (!block) return;
            const idOf = (which) => `${this.place.dataset.prefix}_${which}_beside`;
            const made = {className: "hps-beside", id: idOf(name)};
            const text = find(`#${made.id}`) || block.appendChild(Object.assign(document.createElement("p"), made));
            if (text.textContent !== said.text) text.textContent = said.text;
            block.dataset.idle = said.idle;
            for (const kind of ["idle", "changed", "wrong"]) block.classList.toggle(`hps-${kind}`, Boolean(said[kind]));
            for (const input of block.querySelectorAll("input")) {
                // gradio leaves a slider's two inputs without a name
                if (!input.labels?.[0]?.textContent.includes(said.label)) input.setAttribute("aria-label", said.label);
                input.setAttribute("aria-invalid", String(said.wrong));
                if (said.by) input.setAttribute("aria-describedby", idOf(said.by));
                else input.removeAttribute("aria-describedby");
                if (input.max) input.max = said.highest;
            }
        }

        press({act, steps, cfg, tab}) {
            if (steps) setValue(find(`${this.selectors.steps} input`), steps);
            if (cfg) setValue(find(`${this.selectors.cfg} input`), cfg);
            if (act === "more") this.unfold(this.slot("manage").hidden);
            else if (act === "auto") find(`${this.id}_auto`).click();
            else if (tab) findAll("#tabs > div button").find((each) => each.textContent.trim() === tab)?.click();
            else if (act && !steps) this.act(act);
        }

        unfold(open, needs = "") {
            this.slot("manage").hidden = !open;
            if (needs) this.slot(needs).focus();
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
            const [name, sure] = [this.slot("name").value, this.slot("sure").checked];
            if (act === "delete") this.slot("sure").checked = false;
            this.todo.push({act, name, sure, text, preset: this.preset});
            this.seen = "";
            this.update();
        }
    }

    // gradio builds the page after its scripts were loaded
    const panels = () => findAll(".hpsampler-panel").map((place) => (place.panel ||= new Panel(place)));
    const look = () => document.hidden || panels().forEach((panel) => panel.update());

    setInterval(look, LOOK_MS);
    // at once while a slider is dragged, after the page's own handlers; the rest changes without telling
    for (const event of ["input", "change"]) document.addEventListener(event, () => setTimeout(look), {capture: true});
    // another model, another setting
    if (typeof onOptionsChanged === "function") onOptionsChanged(() => panels().forEach((panel) => (panel.look = true)));
})();
