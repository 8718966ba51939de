// Draws the schedule into the accordion and says in words what its settings do, before Generate is pressed.
//
// All numbers come from hpSamplerSchedule (hpsampler_schedule.js); this file reads the page's controls, and draws. It is
// told by no framework when a menu or a pasted picture changes a control, so it also looks a few times a second.
const hpSamplerPanel = (() => {
    const LOOK_MS = 150;
    const RELOAD_MS = 5000;
    const SVG = "http://www.w3.org/2000/svg";
    const FAMILIES = {sd1: "SD 1.x", sd2: "SD 2.x", sdxl: "SDXL"};
    const STYLE = `
.hpsampler-panel {font-size: 0.85rem; line-height: 1.35; color: var(--body-text-color);}
.hpsampler-panel svg {display: block; width: 100%; height: 230px; overflow: visible;}
.hpsampler-panel svg text {fill: var(--body-text-color); font-size: 11px;}
.hpsampler-panel .hps-grid {stroke: var(--border-color-primary); stroke-width: 1;}
.hpsampler-panel .hps-ours {stroke: #c2410c; fill: none; stroke-width: 2.5;}
.hpsampler-panel .hps-ours-dot {fill: #c2410c; stroke: var(--body-text-color); stroke-width: 0.7;}
.hpsampler-panel .hps-karras {stroke: var(--body-text-color); fill: none; stroke-width: 1.3; stroke-dasharray: 6 4;}
.hpsampler-panel .hps-karras-dot {fill: var(--body-text-color);}
.hpsampler-panel .hps-base {stroke: #2563eb; fill: none; stroke-width: 1.6; stroke-dasharray: 1.5 3;}
.hpsampler-panel .hps-base-dot {stroke: #2563eb; stroke-width: 1.6;}
.hpsampler-panel .hps-beyond {opacity: 0.45;}
.dark .hpsampler-panel .hps-ours {stroke: #fb923c;}
.dark .hpsampler-panel .hps-ours-dot {fill: #fb923c;}
.dark .hpsampler-panel .hps-base, .dark .hpsampler-panel .hps-base-dot {stroke: #60a5fa;}
.hpsampler-panel .hps-freeu {fill: url(#hps-hatch); stroke: var(--body-text-color); stroke-width: 0.5;}
.hpsampler-panel .hps-skipped {fill: var(--body-text-color); opacity: 0.12;}
.hpsampler-panel .hps-cut {stroke: var(--body-text-color); stroke-width: 1;}
.hpsampler-panel .hps-key {display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; margin: 0.2rem 0; padding: 0; list-style: none;}
.hpsampler-panel .hps-key svg {display: inline-block; width: 34px; height: 12px; vertical-align: middle;}
.hpsampler-panel .hps-row {display: flex; flex-wrap: wrap; align-items: center; gap: 0.3rem; margin: 0.35rem 0;}
.hpsampler-panel button {border: 1px solid var(--border-color-primary); border-radius: 0.4rem; padding: 0.1rem 0.5rem;
    background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color);}
.hpsampler-panel button:focus-visible {outline: 2px solid currentColor; outline-offset: 1px;}
.hpsampler-panel .hps-words {margin: 0.3rem 0; padding-left: 0; list-style: none;}
.hpsampler-panel ul li {list-style: none !important; margin: 0; padding: 0;}
.hpsampler-panel .hps-error {border-left: 4px solid #dc2626; padding-left: 0.5rem; font-weight: 600;}
.hpsampler-panel .hps-note {border-left: 4px solid var(--border-color-primary); padding-left: 0.5rem;}
.hpsampler-panel table {border-collapse: collapse; font-variant-numeric: tabular-nums;}
.hpsampler-panel td, .hpsampler-panel th {padding: 0 0.7rem 0 0; text-align: right;}
.hps-idle > *:not(.hps-reason) {opacity: 0.45;}
.hps-reason {margin: 0.15rem 0 0; font-size: 0.75rem; font-style: italic; color: var(--body-text-color);}
`;

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => (selector ? root().querySelector(selector) : null);
    const short = (value) => Number(value.toPrecision(value >= 10 ? 4 : 3)).toString();

    function inputOf(selector) {
        return find(`${selector} input[type=number]`) || find(`${selector} input:not([type=checkbox])`);
    }

    function numberOf(selector, fallback) {
        const input = inputOf(selector);
        const value = input && input.value.trim() !== "" ? Number(input.value) : NaN;
        return Number.isFinite(value) ? value : fallback;
    }

    // As a person would: frameworks only learn of a value by its event.
    function setValue(input, value) {
        input.value = value;
        input.dispatchEvent(new Event("input", {bubbles: true}));
        input.dispatchEvent(new Event("change", {bubbles: true}));
    }

    function element(tag, attributes = {}, ...children) {
        const made = document.createElement(tag);
        for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
        made.append(...children);
        return made;
    }

    function shape(parent, tag, attributes, text) {
        const made = document.createElementNS(SVG, tag);
        for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
        if (text !== undefined) made.textContent = text;
        parent.append(made);
        return made;
    }

    class Panel {
        constructor(place) {
            this.place = place;
            this.prefix = place.dataset.prefix;
            this.page = JSON.parse(place.dataset.page);
            this.seen = "";
            this.menus = {};
            this.offers = element("div", {class: "hps-row", role: "group", "aria-label": "Step counts on offer"});
            this.fits = element("div", {class: "hps-row", role: "group", "aria-label": "Presets that fit"});
            this.summary = element("p", {class: "hps-summary"});
            this.words = element("ul", {class: "hps-words", "aria-live": "polite"});
            this.figure = element("div", {class: "hps-figure"});
            this.table = element("table");
            this.numbers = element("details", {}, element("summary", {}, "Numbers"), this.table);
            place.replaceChildren(this.summary, this.words, this.figure, this.numbers, this.offers, this.fits);
        }

        get id() {
            return `#${this.prefix}`;
        }

        // The data of hpsampler/panel.py; null until the page has it.
        data() {
            const area = find(`${this.id}_data textarea`);
            if (!area || !area.value) return null;
            if (area.value !== this.text) {
                this.text = area.value;
                this.parsed = JSON.parse(area.value);
                this.seen = "";
            }
            return this.parsed;
        }

        // A menu's text is a filter while somebody types in it; what it last had stands until one is chosen.
        menu(name, selector, choices) {
            const input = inputOf(selector);
            const text = input ? input.value : "";
            if (!choices.length || choices.includes(text) || !(name in this.menus)) this.menus[name] = text;
            return this.menus[name];
        }

        state(data) {
            const values = {};
            for (const [name, field] of Object.entries(data.fields)) {
                const selector = `${this.id}_${name}`;
                if (field.choices.length || field.text) {
                    values[name] = this.menu(name, selector, field.choices) || field.default;
                } else {
                    values[name] = numberOf(selector, field.default);
                }
            }
            const on = find(`${this.id}-checkbox input`) || find(`${this.id}_enabled input`);
            return {
                enabled: Boolean(on && on.checked),
                values,
                sampler: this.menu("page sampler", this.page.sampler, []),
                schedule: this.menu("page schedule", this.page.schedule, []) || "Automatic",
                steps: numberOf(this.page.steps, 20),
                cfg: numberOf(this.page.cfg, 7),
                width: numberOf(this.page.width, 0),
                height: numberOf(this.page.height, 0),
                img2img: Boolean(this.page.denoising),
                exactSteps: typeof opts === "object" && Boolean(opts.img2img_fix_steps),
                denoising: numberOf(this.page.denoising, 1),
            };
        }

        update() {
            const visible = this.place.offsetParent !== null;
            // what other tabs made meanwhile: calibrations, another model, presets
            if (visible && !this.visible) this.look();
            this.visible = visible;
            if (!visible) return;
            const data = this.data();
            if (!data) return;
            const state = this.state(data);
            const chosen = this.menu("preset", `${this.id}_preset`, []);
            const signature = JSON.stringify([state, chosen, this.place.clientWidth]);
            if (signature === this.seen) return;
            this.seen = signature;
            const view = hpSamplerSchedule.view(data, state);
            this.say(data, state, view);
            this.draw(data, state, view);
            this.offer(data, state, view, chosen);
            this.grey(data, state, view);
            this.tell(data, state);
        }

        say(data, state, view) {
            const model = data.model ? `${FAMILIES[data.family]}, ${data.model}` : "no model is loaded yet: SD 1.x's table";
            const end = view.noiseLeft ? `${short(view.endSigma)}, left for the VAE` : "0";
            const solver = (view.recipe && data.solverLabels[view.recipe.solver]) || "";
            const parts = [];
            if (view.error) {
                parts.push("The generation would stop:");
            } else if (!view.coupled) {
                parts.push(`${state.sampler} on ${state.schedule} does not use this schedule.`);
            } else {
                const what = view.calibration ? `calibration ${view.calibration}` : view.recipe.name;
                const golden = view.golden ? `, ${view.golden} of them for golden noise` : "";
                const calls = view.calls === null ? `${state.steps} steps` : `${view.calls} UNet calls${golden}`;
                const from = view.sigmas[view.skipped];
                parts.push(`${what}${view.calls === null ? "" : `: ${solver}`}, ${calls}, sigma ${short(from)} to ${end}.`);
            }
            parts.push(state.enabled ? "" : "The accordion is off: HP samplers follow Auto.", `(${model})`);
            this.summary.textContent = parts.filter(Boolean).join(" ");
            const lines = [];
            if (data.problem) lines.push(["hps-error", `Error: ${data.problem}`]);
            if (view.error) lines.push(["hps-error", `Error: ${view.error}`]);
            for (const note of view.notes) lines.push(["hps-note", `Note: ${note}.`]);
            const items = lines.map(([kind, text]) => element("li", {class: kind}, text));
            this.words.replaceChildren(...items);
        }

        draw(data, state, view) {
            this.numbers.hidden = this.figure.hidden = Boolean(view.error) || !data.plot;
            if (this.figure.hidden) {
                this.figure.dataset.sigmas = "[]";
                return;
            }
            const width = Math.max(this.place.clientWidth, 260);
            const height = 230;
            const box = {left: 42, right: width - 14, top: 16, bottom: height - 34};
            const steps = view.sigmas.length - 1;
            // the base curve lies so that its cut is where our schedule ends
            const scale = view.base.length ? steps / view.cut : 0;
            const last = Math.max(steps, state.steps, (view.base.length - 1) * scale);
            const positive = [...view.sigmas, ...view.karras, ...view.base].filter((sigma) => sigma > 0);
            const high = Math.log10(Math.max(...positive) * 1.15);
            const low = Math.log10(Math.min(...positive) / 1.15);
            const zero = box.bottom;
            const floor = box.bottom - 16;
            const x = (step) => box.left + ((box.right - box.left) * step) / last;
            const y = (sigma) =>
                sigma > 0 ? floor - ((floor - box.top) * (Math.log10(sigma) - low)) / (high - low) : zero;
            const svg = document.createElementNS(SVG, "svg");
            svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
            svg.setAttribute("role", "img");
            svg.setAttribute("aria-label", this.described(state, view));
            const pattern = {id: "hps-hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse"};
            const hatch = shape(shape(svg, "defs", {}), "pattern", {...pattern, patternTransform: "rotate(45)"});
            shape(hatch, "rect", {width: 1.4, height: 6, fill: "currentColor", opacity: 0.35});

            for (const sigma of [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 1000, 10000]) {
                if (Math.log10(sigma) < low || Math.log10(sigma) > high) continue;
                shape(svg, "line", {class: "hps-grid", x1: box.left, x2: box.right, y1: y(sigma), y2: y(sigma)});
                shape(svg, "text", {x: box.left - 5, y: y(sigma) + 4, "text-anchor": "end"}, String(sigma));
            }
            shape(svg, "line", {class: "hps-grid", x1: box.left, x2: box.right, y1: zero, y2: zero});
            shape(svg, "text", {x: box.left - 5, y: zero + 4, "text-anchor": "end"}, "0");
            shape(svg, "text", {x: 2, y: 10}, "sigma");
            const every = Math.max(1, Math.ceil((last * 26) / (box.right - box.left)));
            for (let step = 0; step <= last; step += every) {
                shape(svg, "text", {x: x(step), y: height - 18, "text-anchor": "middle"}, String(step));
            }
            shape(svg, "text", {x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle"}, "step");

            if (view.skipped > 0) {
                const skipped = {x: x(0), width: x(view.skipped) - x(0), y: box.top, height: zero - box.top};
                shape(svg, "rect", {class: "hps-skipped", ...skipped});
                shape(svg, "text", {x: x(0) + 4, y: box.top + 24}, "left out by img2img");
            }
            for (const [first, final] of view.freeuSpans) {
                const [from, to] = [x(first), x(final)];
                shape(svg, "rect", {class: "hps-freeu", x: from, width: to - from, y: box.top, height: zero - box.top});
                shape(svg, "text", {x: from + 3, y: box.top + 11}, "Free-U");
            }
            const line = (points, kind) =>
                shape(svg, "polyline", {class: kind, points: points.map((point) => point.join(",")).join(" ")});
            const base = view.base.map((sigma, i) => [x(i * scale), y(sigma)]);
            line(base.slice(0, view.cut + 1), "hps-base");
            line(base.slice(view.cut), "hps-base hps-beyond");
            base.forEach(([px, py], i) => {
                const kind = `hps-base-dot${i > view.cut ? " hps-beyond" : ""}`;
                shape(svg, "path", {class: kind, d: `M${px - 3} ${py - 3}l6 6m0 -6l-6 6`});
            });
            if (base.length) {
                const [cx, cy] = base[view.cut];
                shape(svg, "line", {class: "hps-cut", x1: cx, x2: cx, y1: cy - 22, y2: cy + 10});
                shape(svg, "text", {x: cx, y: cy - 26, "text-anchor": cx > box.right - 40 ? "end" : "middle"}, "cut");
            }
            const karras = view.karras.map((sigma, i) => [x(i), y(sigma)]);
            line(karras, "hps-karras");
            for (const [px, py] of karras) {
                shape(svg, "rect", {class: "hps-karras-dot", x: px - 2.2, y: py - 2.2, width: 4.4, height: 4.4});
            }
            const ours = view.sigmas.map((sigma, i) => [x(i), y(sigma)]);
            line(ours, "hps-ours");
            for (const [px, py] of ours) shape(svg, "circle", {class: "hps-ours-dot", cx: px, cy: py, r: 4});
            const [ex, ey] = ours[steps];
            const told = view.noiseLeft ? `${short(view.endSigma)} left` : "0";
            const under = view.noiseLeft && ey < zero - 20;
            shape(svg, "text", {x: ex - 7, y: under ? ey + 14 : ey - 8, "text-anchor": "end"}, told);
            this.figure.replaceChildren(svg, this.key(view));
            this.figure.dataset.sigmas = JSON.stringify(view.sigmas);
            this.list(state, view);
        }

        key(view) {
            const sample = (draw) => {
                const svg = document.createElementNS(SVG, "svg");
                svg.setAttribute("viewBox", "0 0 34 12");
                svg.setAttribute("aria-hidden", "true");
                draw(svg);
                return svg;
            };
            const mark = (kind, dot) =>
                sample((svg) => {
                    shape(svg, "line", {class: kind, x1: 1, x2: 33, y1: 6, y2: 6});
                    dot(svg);
                });
            const items = [
                [mark("hps-ours", (svg) => shape(svg, "circle", {class: "hps-ours-dot", cx: 17, cy: 6, r: 4})), "HP"],
                [
                    mark("hps-karras", (svg) =>
                        shape(svg, "rect", {class: "hps-karras-dot", x: 15, y: 4, width: 4.4, height: 4.4})
                    ),
                    "DPM++ 2M Karras",
                ],
            ];
            if (view.base.length) {
                const cross = (svg) => shape(svg, "path", {class: "hps-base-dot", d: "M14 3l6 6m0 -6l-6 6"});
                items.push([mark("hps-base", cross), "base Karras, and where it is cut"]);
            }
            return element("ul", {class: "hps-key"}, ...items.map((parts) => element("li", {}, ...parts)));
        }

        described(state, view) {
            const list = view.sigmas.map(short).join(", ");
            const freeu = view.freeu.map(([first, last]) => `Free-U in UNet calls ${first} to ${last}. `).join("");
            const cut = view.base.length
                ? `The base Karras schedule has ${view.base.length} points and is cut at point ${view.cut}. `
                : "";
            return `Noise schedule, sigma at each step: ${list}. ${cut}${freeu}DPM++ 2M Karras: ${view.karras
                .map(short)
                .join(", ")}.`;
        }

        list(state, view) {
            const head = element("tr", {}, ...["Step", "HP", "Karras", "Free-U"].map((text) => element("th", {}, text)));
            const rows = view.sigmas.map((sigma, i) => {
                const on = view.freeuSpans.some(([first, last]) => first <= i && i < last);
                const karras = i < view.karras.length ? short(view.karras[i]) : "";
                const cells = [String(i), short(sigma), karras, on ? "on" : ""];
                return element("tr", {}, ...cells.map((text) => element("td", {}, text)));
            });
            this.table.replaceChildren(element("caption", {hidden: ""}, "Sigma at each step"), head, ...rows);
        }

        offer(data, state, view, chosen) {
            const parts = [];
            const steps = (offer) => {
                const text = `${offer.steps} steps${offer.cfg === null ? "" : `, CFG ${short(offer.cfg)}`}`;
                const button = element("button", {type: "button", title: offer.why}, text);
                const now = offer.steps === state.steps && (offer.cfg === null || offer.cfg === state.cfg);
                button.setAttribute("aria-pressed", String(now));
                if (now) button.prepend("✓ ");
                button.addEventListener("click", () => {
                    setNumber(this.page.steps, offer.steps);
                    if (offer.cfg !== null) setNumber(this.page.cfg, offer.cfg);
                    this.update();
                });
                return button;
            };
            if (view.coupled && view.offers.length) parts.push("Made for:", ...view.offers.map(steps));
            this.offers.replaceChildren(...parts);
            const fitting = data.presets.filter((each) => each.fitsModel && (!each.steps || each.steps === state.steps));
            const load = (preset) => {
                const button = element("button", {type: "button"}, preset.name);
                button.addEventListener("click", () => this.pick(preset.name));
                return button;
            };
            const label = `Presets for ${FAMILIES[data.family]} at ${state.steps} steps:`;
            this.fits.replaceChildren(label, ...fitting.map(load));
            const misfit = data.presets.find((each) => each.name === chosen && !fitting.includes(each));
            if (misfit) {
                const made = [misfit.family && FAMILIES[misfit.family], misfit.steps && `${misfit.steps} steps`];
                this.fits.append(element("span", {}, `(${chosen} is made for ${made.filter(Boolean).join(" and ")}.)`));
            }
        }

        pick(name) {
            const area = find(`${this.id}_preset_picked textarea`) || find(`${this.id}_preset_picked input`);
            setValue(area, name);
            find(`${this.id}_preset_pick`).click();
        }

        // Greyed, but still there to be set: the sampler may be changed after it.
        grey(data, state, view) {
            for (const [name, field] of Object.entries(data.fields)) {
                const block = find(`${this.id}_${name}`);
                if (!block) continue;
                // gradio leaves a slider's two inputs without a name
                for (const input of block.querySelectorAll("input")) {
                    if (!input.labels || !input.labels.length || !input.labels[0].textContent.includes(field.label)) {
                        input.setAttribute("aria-label", field.label);
                    }
                }
                const reason = state.enabled ? view.idle[name] || "" : "";
                let told = block.querySelector(":scope > .hps-reason");
                if (!told && !reason) continue;
                if (!told) {
                    told = element("p", {class: "hps-reason", id: `${this.prefix}_${name}_reason`});
                    block.append(told);
                }
                told.hidden = !reason;
                if (told.textContent !== reason) told.textContent = reason && `No effect: ${reason}.`;
                block.classList.toggle("hps-idle", Boolean(reason));
                for (const input of block.querySelectorAll("input")) {
                    if (reason) input.setAttribute("aria-describedby", told.id);
                    else input.removeAttribute("aria-describedby");
                }
            }
        }

        // What a preset is saved with, beside the accordion's own values.
        tell(data, state) {
            const area = find(`${this.id}_preset_around textarea`) || find(`${this.id}_preset_around input`);
            const around = {
                family: data.model ? data.family : "",
                steps: state.steps,
                cfg_scale: state.cfg,
                sampler: state.sampler,
                schedule: state.schedule,
            };
            const text = JSON.stringify(around);
            if (area && area.value !== text) setValue(area, text);
        }

        // Fetch the data anew: another model, another calibration.
        look() {
            const button = find(`${this.id}_look`);
            if (button) button.click();
        }
    }

    function setNumber(selector, value) {
        for (const input of root().querySelectorAll(`${selector} input`)) setValue(input, value);
    }

    function start() {
        const places = [...root().querySelectorAll(".hpsampler-panel")];
        if (!places.length || places.some((place) => place.dataset.drawn)) return places.length > 0;
        document.head.append(element("style", {}, STYLE));
        const panels = places.map((place) => new Panel(place));
        places.forEach((place) => (place.dataset.drawn = "yes"));
        const all = (act) => panels.forEach(act);
        // at once while a slider is dragged; the rest of the page changes without telling
        for (const event of ["input", "change"]) {
            document.addEventListener(event, () => all((panel) => panel.update()), {capture: true});
        }
        setInterval(() => document.hidden || all((panel) => panel.update()), LOOK_MS);
        window.addEventListener("resize", () => all((panel) => panel.update()));
        // the host loads its model after its page
        const waiting = setInterval(() => {
            const known = panels.every((panel) => !panel.data() || panel.data().model);
            if (known) clearInterval(waiting);
            else if (!document.hidden) all((panel) => panel.look());
        }, RELOAD_MS);
        if (typeof onOptionsChanged === "function") {
            const names = ["sd_model_checkpoint", "sd_checkpoint_hash", "hpsampler_follow", "sd_noise_schedule"];
            const watched = () => JSON.stringify(names.map((name) => opts[name]));
            let last = watched();
            onOptionsChanged(() => {
                if (watched() === last) return;
                last = watched();
                all((panel) => panel.look());
            });
        }
        return true;
    }

    if (typeof onUiLoaded === "function") {
        onUiLoaded(start);
    } else {
        const trying = setInterval(() => start() && clearInterval(trying), 200);
    }
    return {start};
})();
