// The schedule's mathematics in the browser, so that the page can draw what a slider does while it is dragged.
//
// It follows hpsampler/settings.py, recipes.py, schedule.py, noise.py, effects.py and webui/passes.py, in their words
// and with their names; every table comes from hpsampler/panel.py as `data`. tests/test_schedule_js.py holds it to
// them.
// Pure functions: nothing here reads or changes the page.
const hpSamplerSchedule = (() => {
    const AUTO = "Auto";
    const OFF = "Off";
    const AS_RECIPE = "Recipe";
    const LONGEST_TEXT = 400;
    const LONGEST_SHOWN = 60;
    const PAPER_STEPS = 8;
    // Ends of Stable Diffusion's noise table, which the cuts were tuned on.
    const SD_SIGMAS = [0.02916715, 14.6146412];

    // What the host's samplers do with a schedule, by their names there.
    const TWO_CALLS = new Set(["DPM++ SDE", "DPM++ 2S a", "Heun", "DPM2", "DPM2 a", "Restart"]);
    const ONE_POINT_MORE = new Set(["DPM++ 3M SDE", "DPM2", "DPM2 a"]);
    const OWN_SCHEDULE = new Set(["DDIM", "DDIM CFG++", "PLMS", "UniPC", "DPM fast", "DPM adaptive"]);

    // A setting that cannot be used; the message is for people.
    class Refusal extends Error {}

    // ---- numbers and texts as Python writes them --------------------------------------------------------------------

    // The decimal number 0.d1d2d3... times 10^(exponent + 1), without an exponent.
    function positional(digits, exponent) {
        if (exponent < 0) return `0.${"0".repeat(-exponent - 1)}${digits}`;
        const whole = digits.padEnd(exponent + 1, "0");
        return whole.length > exponent + 1 ? `${whole.slice(0, exponent + 1)}.${whole.slice(exponent + 1)}` : whole;
    }

    function scientific(digits, exponent) {
        const mantissa = digits.length > 1 ? `${digits[0]}.${digits.slice(1)}` : digits;
        return `${mantissa}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
    }

    const infinite = (value) => (Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf");
    const minus = (value) => (value < 0 || Object.is(value, -0) ? "-" : "");

    // Digits and decimal exponent of toExponential.
    function parts(text) {
        const [mantissa, exponent] = text.split("e");
        return [mantissa.replace(".", ""), Number(exponent)];
    }

    // Python's format(value, ".{precision}g").
    function general(value, precision = 6) {
        if (!Number.isFinite(value)) return infinite(value);
        const size = Math.abs(value);
        let [digits, exponent] = parts(size.toExponential(precision - 1));
        // halfway between two, Python takes the even digit and toExponential the greater one
        const [exact, below] = parts(size.toExponential(Math.min(precision + 40, 100)));
        if (/^50*$/.test(exact.slice(precision)) && Number(exact[precision - 1]) % 2 === 0) {
            [digits, exponent] = [exact.slice(0, precision), below];
        }
        digits = digits.replace(/0+$/, "") || "0";
        const plain = -4 <= exponent && exponent < precision;
        return minus(value) + (plain ? positional : scientific)(digits, exponent);
    }

    // Python's repr of a float.
    function float(value) {
        if (!Number.isFinite(value)) return infinite(value);
        const [digits, exponent] = parts(Math.abs(value).toExponential());
        if (exponent < -4 || exponent >= 16) return minus(value) + scientific(digits, exponent);
        const text = positional(digits, exponent);
        return minus(value) + (text.includes(".") ? text : `${text}.0`);
    }

    function quoted(text) {
        const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
        const hex = (code) =>
            code <= 0xff
                ? `\\x${code.toString(16).padStart(2, "0")}`
                : code <= 0xffff
                  ? `\\u${code.toString(16).padStart(4, "0")}`
                  : `\\U${code.toString(16).padStart(8, "0")}`;
        const short = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", [quote]: `\\${quote}`};
        const one = (letter) => {
            if (letter in short) return short[letter];
            return letter !== " " && /[\p{C}\p{Z}]/u.test(letter) ? hex(letter.codePointAt(0)) : letter;
        };
        return quote + Array.from(text, one).join("") + quote;
    }

    // Python's repr of a value that the page sends: a whole number arrives there as an int.
    function represented(value) {
        if (typeof value === "string") return quoted(value);
        if (typeof value === "boolean") return value ? "True" : "False";
        if (typeof value !== "number") return "None";
        return Number.isInteger(value) && Math.abs(value) < 1e21 ? BigInt(value).toString() : float(value);
    }

    // str.strip: not the same blanks as trim's.
    const BLANKS = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
    const ENDS = new RegExp(`^${BLANKS}|${BLANKS}$`, "g");
    const strip = (text) => text.replace(ENDS, "");

    // ---- settings ---------------------------------------------------------------------------------------------------

    function refuse(name, field, value, allowed) {
        const letters = Array.from(represented(value));
        const shown = letters.length <= LONGEST_SHOWN ? letters : [...letters.slice(0, LONGEST_SHOWN - 3), "..."];
        throw new Refusal(`HP Sampler: ${field.label} (${name}) must be ${allowed}, got ${shown.join("")}`);
    }

    // A value in its proper type, or a refusal.
    function parsed(data, name, value) {
        const field = data.fields[name];
        if (field.choices.length) {
            const spelling = ["string", "number"].includes(typeof value) ? strip(String(value)).toLowerCase() : null;
            const alias = (choice) => (name === "ending" && data.endings[choice]) || choice;
            const found = field.choices.find(
                (choice) => spelling === choice.toLowerCase() || spelling === alias(choice).toLowerCase()
            );
            return found === undefined ? refuse(name, field, value, `one of ${field.choices.join(", ")}`) : found;
        }
        if (field.text) {
            const text = typeof value === "string" ? strip(value) : "";
            const length = Array.from(text).length;
            if (length === 0 || length > LONGEST_TEXT) {
                const allowed = `${field.words.join(", ")} or a name of at most ${LONGEST_TEXT} characters`;
                refuse(name, field, value, allowed);
            }
            return field.words.find((word) => word.toLowerCase() === text.toLowerCase()) || text;
        }
        const {low, high, neutral, whole} = field;
        const fits = Number.isFinite(value) && ((low <= value && value <= high) || value === neutral);
        if (!fits || (whole && !Number.isInteger(value))) {
            const other = neutral !== null && neutral < low ? `, or ${general(neutral)}` : "";
            const kind = whole ? "whole number" : "number";
            refuse(name, field, value, `a ${kind} from ${general(low)} to ${general(high)}${other}`);
        }
        return value;
    }

    // The validated settings of an accordion: the defaults where it is off.
    function settingsOf(data, state) {
        const settings = {enabled: state.enabled};
        for (const [name, field] of Object.entries(data.fields)) {
            const given = state.enabled && Object.hasOwn(state.values, name);
            settings[name] = given ? parsed(data, name, state.values[name]) : field.default;
        }
        check(data, settings);
        return settings;
    }

    const changed = (data, settings, names) =>
        Object.keys(data.fields).filter((name) => names.includes(name) && settings[name] !== data.fields[name].default);
    const namesCalibration = (settings) => settings.calibration !== AUTO && settings.calibration !== OFF;
    const takesCalibration = (data, settings) =>
        settings.recipe === AUTO &&
        settings.calibration !== OFF &&
        !changed(data, settings, [...data.groups.schedule, "analytical_first_step"]).length;

    // Settings that contradict each other.
    function check(data, settings) {
        const cut = ["base_steps", "rho", "truncation_index"].filter((name) => settings[name]);
        if (settings.end_sigma && cut.length) {
            throw new Refusal(
                `HP Sampler: End sigma (end_sigma=${general(settings.end_sigma)}) and ${cut.join(", ")} both say ` +
                    "where the schedule ends; set one of them to 0"
            );
        }
        if (settings.freeu_last && settings.freeu_last < settings.freeu_first) {
            throw new Refusal(
                "HP Sampler: Free-U last call (freeu_last) must be 0 or at least Free-U first call = " +
                    `${settings.freeu_first}, got ${settings.freeu_last}`
            );
        }
        if (settings.recipe !== AUTO) withCut(settings, data.recipes[settings.recipe]);
        if (namesCalibration(settings)) {
            const preset = settings.recipe !== AUTO;
            const others = changed(data, settings, ["recipe", ...data.groups.schedule, "analytical_first_step"]);
            if (others.length) {
                const shown = (name, value) =>
                    typeof value === "string" || data.fields[name].whole ? String(value) : float(value);
                const listed = others.map(
                    (name) => `${data.fields[name].label} (${name}=${shown(name, settings[name])})`
                );
                throw new Refusal(
                    `HP Sampler: Calibration (calibration=${quoted(settings.calibration)}) and ${listed.join(", ")} ` +
                        "both say what the schedule is; leave one of them at its default"
                );
            }
        }
    }

    function withCut(settings, recipe) {
        const baseSteps = settings.base_steps || recipe.base_steps;
        const index = settings.truncation_index || recipe.truncation_index;
        if (!settings.end_sigma && index >= baseSteps) {
            throw new Refusal(
                "HP Sampler: Truncation index (truncation_index) must be below Base steps = " +
                    `${baseSteps}, got ${index}`
            );
        }
        return {...recipe, base_steps: baseSteps, truncation_index: index};
    }

    // ---- recipes ----------------------------------------------------------------------------------------------------

    // The recipe that the settings name, without what was set beside it.
    function namedRecipe(data, settings, steps, cfg) {
        if (settings.recipe !== AUTO) return withSteps(data.recipes[settings.recipe], steps);
        const made = Math.min(steps, data.maxSteps);
        const fits = (row) => (row.lastCfg === null || cfg <= row.lastCfg) && made <= row.lastSteps;
        return withSteps(data.auto.find(fits).recipe, steps);
    }

    function withSteps(recipe, steps) {
        return {...recipe, steps, freeu: shifted(recipe.freeu, steps - recipe.steps)};
    }

    // Free-U's plans moved by a number of calls, those that fall off the start cut away.
    function shifted(plans, by) {
        const moved = plans.map(({first, last}) => ({
            first: Math.max(first + by, 0),
            last: last === null ? null : last + by,
        }));
        return moved.filter(({first, last}) => last === null || last >= first);
    }

    // The recipe of one pass, with what was set in place of its own.
    function resolve(data, settings, steps, cfg) {
        const named = namedRecipe(data, settings, steps, cfg);
        if (!settings.enabled) return named;
        const recipe = withCut(settings, named);
        const set = (name) => (settings[name] === AS_RECIPE ? recipe[name] : settings[name]);
        const analytical = data.analytical[settings.analytical_first_step];
        return {
            ...recipe,
            rho: settings.rho || recipe.rho,
            time_rho: settings.time_rho || recipe.time_rho,
            end_sigma: settings.end_sigma || recipe.end_sigma,
            ending: data.endings[settings.ending] || recipe.ending,
            prediction: set("prediction"),
            variant: set("variant"),
            order: settings.order || recipe.order,
            analytical_first_step: analytical === undefined ? recipe.analytical_first_step : analytical,
            freeu: plansOf(data, settings, recipe),
        };
    }

    function plansOf(data, settings, recipe) {
        if (settings.freeu === AS_RECIPE) return recipe.freeu;
        if (settings.freeu === OFF) return [];
        const last = settings.freeu_last ? settings.freeu_last - 1 : null;
        if (settings.freeu_first) return [{first: settings.freeu_first - 1, last}];
        const first = lateStart(data.family, recipe.steps);
        return [{first: last === null ? first : Math.min(first, last), last}];
    }

    function lateStart(family, steps) {
        if (steps > PAPER_STEPS || steps < 5) return steps - Math.max(1, Math.floor(steps / 3));
        return family === "sdxl" ? Math.max(3, steps - 3) : 4;
    }

    // ---- noise table and schedule -----------------------------------------------------------------------------------

    const tables = new WeakMap();

    // A noise table with what its two maps need, computed once.
    function tableOf(noise) {
        let table = tables.get(noise);
        if (!table) {
            const sigmas = noise.sigmas;
            const alphas = sigmas.map((sigma) => 1 / (1 + sigma * sigma));
            table = {
                low: sigmas[0],
                high: sigmas[sigmas.length - 1],
                zeroTerminalSnr: noise.zeroTerminalSnr,
                alphas,
                rising: alphas.map((alpha) => -alpha),
                logs: sigmas.map(Math.log),
                times: sigmas.map((_, t) => t),
            };
            tables.set(noise, table);
        }
        return table;
    }

    // numpy.interp for one value.
    function interpolate(x, xs, ys) {
        const last = xs.length - 1;
        if (Number.isNaN(x)) return x;
        if (x <= xs[0]) return ys[0];
        if (x >= xs[last]) return ys[last];
        let [low, high] = [0, last];
        while (high - low > 1) {
            const middle = (low + high) >> 1;
            if (xs[middle] <= x) low = middle;
            else high = middle;
        }
        return ((ys[high] - ys[low]) / (xs[high] - xs[low])) * (x - xs[low]) + ys[low];
    }

    const sigmaToT = (table, sigma) => interpolate(Math.log(sigma), table.logs, table.times);
    const tOfEnd = (table, sigma) => interpolate(-1 / (1 + sigma * sigma), table.rising, table.times);

    function tToSigma(table, t) {
        const alpha = interpolate(t, table.times, table.alphas);
        return Math.sqrt((1 - alpha) / alpha);
    }

    // `steps + 1` values from start to end, evenly spaced in their 1/rho-th power (Karras' formula).
    function warped(start, end, steps, rho) {
        const [first, last] = [start ** (1 / rho), end ** (1 / rho)];
        const share = (i) => (i === steps && steps > 0 ? 1 : i * (1 / steps));
        const values = Array.from({length: steps + 1}, (_, i) => (first + (i && share(i)) * (last - first)) ** rho);
        // a small rho loses the lesser end among the digits of the greater
        values[steps] = steps ? end : start;
        return values;
    }

    const baseKarras = (steps, rho, low, high) => warped(high, low, steps - 1, rho);

    // Our noise levels in single precision, as Recipe.sigmas has them; with the base schedule where it says the end.
    function scheduleOf(table, recipe) {
        if (recipe.levels.length) return {sigmas: recipe.levels.map(Math.fround), base: [], cut: 0};
        const {steps, base_steps: baseSteps, rho, truncation_index: cut, time_rho: timeRho, ending} = recipe;
        let [base, end, asked] = [[], recipe.end_sigma, ""];
        if (end === null && table.zeroTerminalSnr) {
            // measured from such a table's own top, the cut would leave most of the noise
            base = baseKarras(baseSteps, rho, ...SD_SIGMAS);
            end = Math.max(base[cut], table.low);
        }
        const start = sigmaToT(table, table.high);
        let last;
        if (end !== null) {
            if (!(table.low * (1 - 1e-4) <= end && end < table.high)) {
                throw new Refusal(
                    `HP Sampler: end_sigma must be from ${general(table.low, 4)} (the model's smallest) to below ` +
                        `${general(table.high, 4)}, got ${float(end)}`
                );
            }
            last = tOfEnd(table, end);
            asked = `end_sigma=${general(end)}`;
        } else {
            base = baseKarras(baseSteps, rho, table.low, table.high);
            last = sigmaToT(table, base[cut]);
            asked = `base_steps=${baseSteps}, rho=${general(rho)}, truncation_index=${cut}`;
        }
        if (!(last < start)) {
            throw new Refusal(
                `HP Sampler: the schedule must end below its start: ${asked} ends at timestep ${general(last)}, ` +
                    `the start is ${general(start)}`
            );
        }
        const sigmas = warped(start, last, steps, timeRho).map((t) => Math.fround(tToSigma(table, t)));
        if (!sigmas.every((sigma, i) => i === 0 || sigma < sigmas[i - 1])) {
            throw new Refusal(
                `HP Sampler: the schedule's ${steps} steps must stay apart, and some fall together with ${asked}, ` +
                    `time_rho=${general(timeRho)}; choose a time_rho nearer to 1.2, or another end`
            );
        }
        if (ending === "zero" || ending === "extrapolate") sigmas[steps] = 0;
        if (ending === "extra_call") sigmas.push(0);
        return {sigmas, base, cut: base.length ? cut : 0};
    }

    // One point more, halfway in time between the first two: it spends the call that the analytical first step saves.
    function withFirstMidpoint(table, sigmas) {
        const middle = tToSigma(table, (tOfEnd(table, sigmas[0]) + tOfEnd(table, sigmas[1])) / 2);
        return [sigmas[0], Math.fround(middle), ...sigmas.slice(1)];
    }

    // ---- calibrations -----------------------------------------------------------------------------------------------

    // Why a calibration does not fit the picture; empty where it does. Those of other models are not in the data.
    function misfit(data, row, state) {
        const ratio = (state.width * state.height) / (row.width * row.height);
        if (1 / data.reach.area - 1e-9 <= ratio && ratio <= data.reach.area + 1e-9) return "";
        return `it was made at ${row.width}x${row.height}, the picture is ${state.width}x${state.height}`;
    }

    const distance = (row, cfg) => Math.abs(Math.log(row.cfg / cfg));

    // The nearest of some rows, which have this number of steps, in guidance scale; the first of equals.
    function nearest(data, rows, steps, state) {
        const fitting = rows.filter((row) => row.steps === steps && !misfit(data, row, state));
        const near = fitting.filter((row) => distance(row, state.cfg) <= Math.log(data.reach.cfg) + 1e-9);
        const nearer = (found, row) => (found && distance(found, state.cfg) <= distance(row, state.cfg) ? found : row);
        return near.reduce(nearer, null);
    }

    const ofName = (data, name) => data.calibrations.filter((row) => row.name === name);

    // Of all calibrations: nearest in guidance scale, then with the greatest gain.
    function best(data, steps, state) {
        const names = [...new Set(data.calibrations.map((row) => row.name))];
        const found = names.map((name) => nearest(data, ofName(data, name), steps, state)).filter(Boolean);
        const before = (a, b) => distance(a, state.cfg) - distance(b, state.cfg) || b.gain - a.gain;
        return found.sort(before)[0] || null;
    }

    // The schedules of labels such as "my model 1a2b3c4d", several with "; " between, in their order.
    function ofLabels(data, wanted) {
        const one = (text) => {
            const label = strip(text);
            const at = label.lastIndexOf(" ");
            const [name, hash] = [label.slice(0, Math.max(at, 0)), label.slice(at + 1)];
            const found = data.calibrations.filter((row) => row.hash === hash);
            return found.find((row) => row.name === name) || found[0];
        };
        return wanted.split("; ").map(one).filter(Boolean);
    }

    // What a person named, or why there is none for this pass.
    function pick(data, wanted, steps, state) {
        const rows = ofName(data, wanted);
        if (rows.length) {
            const found = nearest(data, rows, steps, state);
            const reason = misfit(data, rows[0], state) || `it has no ${steps} steps near CFG ${general(state.cfg)}`;
            return [found, found ? "" : reason];
        }
        const labelled = ofLabels(data, wanted);
        // one of another model's, or none at all: which of them only the server knows
        if (!labelled.length) return [null, "it is not among those made for this model"];
        const found = labelled.find((row) => row.steps === steps);
        return found ? [found, ""] : [null, `it is for ${labelled[0].steps} steps, not ${steps}`];
    }

    // Whether a pass that starts from pure noise uses a calibration by itself, or one is demanded.
    function calibrationsWanted(data, settings, use) {
        const demanded = use.calibrated || namesCalibration(settings);
        const fitting = use.fromNoise && use.own && (use.solver === null || use.solver === "dpmpp_2m");
        return {demanded, wanted: takesCalibration(data, settings) && (demanded || fitting)};
    }

    // The recipe, or a calibrated one in its place.
    function calibrated(data, settings, use, recipe, state, tell) {
        const {demanded, wanted} = calibrationsWanted(data, settings, use);
        if (!wanted) {
            if (demanded) tell("the schedule type HP calibrated followed the recipe, as the settings say what it is");
            return recipe;
        }
        const named = namesCalibration(settings);
        const none = `none fits this model at ${recipe.steps} steps, CFG ${general(state.cfg)} and this size`;
        const [row, reason] = named
            ? pick(data, settings.calibration, recipe.steps, state)
            : [best(data, recipe.steps, state), none];
        if (!row) {
            const name = named ? `the calibration ${settings.calibration}` : "HP calibrated";
            if (demanded) tell(`${name} was not used: ${reason}; the schedule is the recipe's`);
            return recipe;
        }
        const unlike = misfit(data, row, state);
        if (unlike) tell(`the calibration ${row.label} was used although ${unlike}`);
        const ending = row.sigmas[row.sigmas.length - 1] > 0 ? "keep" : "zero";
        return {...recipe, steps: row.steps, solver: "dpmpp_2m", ending, levels: row.sigmas, calibration: row.label};
    }

    // ---- what a pass uses -------------------------------------------------------------------------------------------

    function useOf(data, state) {
        const own = Object.hasOwn(data.samplers, state.sampler);
        const schedule = state.schedule || "Automatic";
        return {
            sampler: state.sampler,
            schedule,
            own,
            solver: own ? data.samplers[state.sampler] : null,
            coupled: schedule === "Automatic" ? own : data.schedules.includes(schedule),
            calibrated: data.schedules.indexOf(schedule) === 1,
            fromNoise: !state.img2img,
        };
    }

    const goldenForm = (data, settings) => data.goldenForms.includes(settings.golden_noise);

    // Why golden noise that is wanted is left out of a pass; empty where it is not.
    function goldenIdle(data, settings, use) {
        if (settings.golden_noise === OFF) return "";
        if (!use.fromNoise) return "golden noise is for pure noise, as in txt2img; it was left out here";
        if (goldenForm(data, settings) && !use.own) {
            return `golden noise ${settings.golden_noise} needs an HP sampler; it was left out here`;
        }
        return "";
    }

    // The settings without an effect in this pass, by name, each with the reason in words.
    function idle(data, settings, use, recipe) {
        const reasons = {};
        const rest = (names, reason) => names.forEach((name) => (reasons[name] = reasons[name] || reason));
        const {schedule, freeu} = data.groups;
        if (!use.fromNoise) rest(["hires_recipe"], "img2img has no second pass");
        if (!use.own && !use.coupled) {
            const unused = `${use.sampler} on the schedule type ${use.schedule} uses nothing of it`;
            rest([...schedule, ...Object.keys(data.solversOf), "recipe", "calibration", "hires_recipe"], unused);
        }
        if (!use.coupled) {
            const other = `the schedule type is ${use.schedule} and not HP`;
            rest([...schedule, "calibration", "analytical_first_step"], other);
            if (use.solver === "dpmpp_1s" || use.solver === "dpmpp_2m") rest(["recipe"], other);
        }
        const solver = use.own ? use.solver || recipe.solver : "";
        for (const [name, owners] of Object.entries(data.solversOf)) {
            const told = owners.map((each) => data.solverLabels[each]).join(" and ");
            if (!owners.includes(solver)) rest([name], `it belongs to ${told}, and another solver is in use`);
        }
        if (!use.fromNoise) rest(["analytical_first_step", "golden_noise"], "img2img does not start from pure noise");
        if (goldenForm(data, settings) && !use.own) rest(["golden_noise"], "A and B need an HP sampler");
        if (settings.freeu !== "On") rest(freeu.filter((name) => name !== "freeu"), "Free-U is not set to On");
        if (settings.recipe !== AUTO || changed(data, settings, [...schedule, "analytical_first_step"]).length) {
            rest(["calibration"], "a preset, or a number that is set, says what the schedule is");
        }
        return reasons;
    }

    // The steps that img2img leaves out at the start of its schedule, as the host counts them.
    // The host's "do exactly the amount of steps the slider specifies" runs the last of a longer schedule.
    function prolonged(state) {
        if (!state.img2img || !state.exactSteps || !(state.denoising > 0)) return state;
        const steps = Math.trunc(state.steps / Math.min(state.denoising, 0.999));
        return {...state, steps, skipped: steps - state.steps};
    }

    function skippedOf(state) {
        if (!state.img2img) return 0;
        if (state.skipped !== undefined) return state.skipped;
        return Math.max(state.steps - Math.trunc(Math.min(state.denoising, 0.999) * state.steps) - 1, 0);
    }

    // Numbers of steps that the present choice is made for.
    function offersOf(data, settings, use, state) {
        if (settings.recipe !== AUTO) {
            return [{steps: data.recipes[settings.recipe].steps, cfg: null, why: "what the preset is made for"}];
        }
        const named = namesCalibration(settings);
        const ofNamed = () => {
            const rows = ofName(data, settings.calibration);
            return rows.length ? rows : ofLabels(data, settings.calibration);
        };
        const offers = named ? [] : data.offered.map((steps) => ({steps, cfg: null, why: "what Auto is made for"}));
        const rows = named ? ofNamed() : data.calibrations;
        const usable = calibrationsWanted(data, settings, use).wanted;
        for (const row of rows.filter((each) => usable && !misfit(data, each, state))) {
            const known = offers.some((offer) => offer.steps === row.steps && offer.cfg === row.cfg);
            if (!known) offers.push({steps: row.steps, cfg: row.cfg, why: "calibrated"});
        }
        return offers.sort((a, b) => a.steps - b.steps);
    }

    // UNet calls, counted from 1, at which Free-U is on: windows with both ends.
    function freeuOf(data, settings, use, state, recipe, made) {
        const total = (state.steps - skippedOf(state)) * (TWO_CALLS.has(use.sampler) ? 2 : 1);
        let plans = [];
        let planned = recipe ? recipe.steps : Math.max(total, 1);
        if (settings.freeu === "On" && !recipe) {
            plans = plansOf(data, settings, {steps: planned});
        } else if (recipe && (settings.enabled || use.own)) {
            plans = recipe.freeu;
        }
        // what was set in calls is counted in those that run; a recipe counts from the end
        const counted = settings.freeu === "On" && (settings.freeu_first || settings.freeu_last);
        return (counted ? plans : shifted(plans, total - planned))
            .map(({first, last}) => [first + 1, (last === null ? made - 1 : Math.min(last, made - 1)) + 1])
            .filter(([first, last]) => first <= last);
    }

    // Presets of another model's family replaced by their counterparts, where the settings page says so.
    function following(data, settings, tell) {
        if (!settings.enabled) return settings;
        const found = {...settings};
        for (const name of ["recipe", "hires_recipe"]) {
            if (Object.hasOwn(data.counterparts, settings[name])) found[name] = data.counterparts[settings[name]];
        }
        check(data, found);
        for (const name of ["recipe", "hires_recipe"]) {
            if (found[name] !== settings[name]) {
                tell(`the preset ${settings[name]} stood for ${found[name]}, as presets follow the model`);
            }
        }
        return found;
    }

    // Everything about one pass. What is refused is told as `error`, and the rest given as far as it is known then.
    function view(data, given) {
        const state = prolonged(given);
        const table = tableOf(data.noise);
        const use = useOf(data, state);
        const notes = [];
        const tell = (text) => notes.includes(text) || notes.push(text);
        const answer = {
            error: "", notes, coupled: use.coupled, sigmas: [], calls: null, golden: 0, freeu: [], freeuSpans: [], base: [],
            cut: 0, endSigma: 0, noiseLeft: false, karras: [], skipped: 0, recipe: null, calibration: "", idle: {}, offers: [],
        };
        try {
            const settings = following(data, settingsOf(data, state), tell);
            if (!Number.isInteger(state.steps) || state.steps < 1) {
                const shown = represented(state.steps);
                throw new Refusal(`HP Sampler: steps must be a whole number of at least 1, got ${shown}`);
            }
            answer.karras = [...baseKarras(state.steps, 7, table.low, table.high), 0];
            answer.skipped = skippedOf(state);
            answer.idle = idle(data, settings, use, namedRecipe(data, settings, state.steps, state.cfg));
            answer.offers = offersOf(data, settings, use, state);
            fill(answer, data, table, settings, use, state, tell);
        } catch (refusal) {
            if (!(refusal instanceof Refusal)) throw refusal;
            answer.error = refusal.message;
        }
        return answer;
    }

    function fill(answer, data, table, settings, use, state, tell) {
        // some of the host's never ask for a schedule, so nothing of it can be refused
        const asked = use.coupled && !OWN_SCHEDULE.has(use.sampler);
        answer.coupled = asked;
        if (use.own || use.coupled || settings.freeu === "On") resolve(data, settings, state.steps, state.cfg);
        const preset = settings.enabled && data.recipes[settings.recipe];
        if (preset && use.coupled && preset.steps !== state.steps) {
            tell(`the recipe ${preset.name} is made for ${preset.steps} steps; it ran with ${state.steps}`);
        }
        if (use.coupled && !asked) {
            tell(`the sampler ${use.sampler} makes its own schedule and ignored the type ${use.schedule}`);
        }
        const unused = changed(data, settings, [...data.groups.schedule, "analytical_first_step"]);
        if (unused.length && use.own && !use.coupled) {
            const labels = unused.map((name) => data.fields[name].label).join(", ");
            tell(`${labels} had no effect, as the schedule type was ${use.schedule} and not HP`);
        }

        const withoutGolden = goldenIdle(data, settings, use);
        if (withoutGolden) tell(withoutGolden);

        const steps = state.steps + ONE_POINT_MORE.has(use.sampler);
        let recipe;
        let found;
        try {
            recipe = resolve(data, settings, steps, state.cfg);
            if (asked) recipe = calibrated(data, settings, use, recipe, state, tell);
            found = scheduleOf(table, recipe);
        } catch (refusal) {
            if (asked || !(refusal instanceof Refusal)) throw refusal;
            // numbers that make no schedule, and none is asked for: without them there is one to draw
            const numbers = data.groups.schedule.map((name) => [name, data.fields[name].default]);
            recipe = resolve(data, {...settings, ...Object.fromEntries(numbers)}, steps, state.cfg);
            found = scheduleOf(table, recipe);
        }
        if (ONE_POINT_MORE.has(use.sampler)) found.sigmas.splice(-2, 1);

        recipe = {...recipe, solver: use.solver || recipe.solver};
        const unipc = use.own && recipe.solver === "unipc";
        const ends = recipe.solver === "dpmpp_2m" || (unipc && recipe.prediction === "data");
        if (use.own && asked && data.endings[settings.ending] && recipe.ending === "extrapolate" && !ends) {
            tell(
                "the ending Extrapolated needs HP DPM++ 2M or HP UniPC with data prediction; " +
                    "the schedule ended at zero instead"
            );
        }
        if (use.own && recipe.solver === "dpm_v3" && settings.statistics === AUTO && data.noStatistics) tell(data.noStatistics);
        const run = asked ? found.sigmas.length - 1 - answer.skipped : state.steps - answer.skipped;
        const toZero = !asked || found.sigmas[found.sigmas.length - 1] === 0;
        // of the host's, those of two calls a step make one in a last step to zero
        const made = TWO_CALLS.has(use.sampler) ? 2 * run - toZero : run;
        answer.golden = !withoutGolden && goldenForm(data, settings) ? data.goldenCalls : 0;
        answer.calls = use.own ? run + answer.golden : null;
        answer.freeu = freeuOf(data, settings, use, state, asked ? recipe : null, made);
        let inserted = 0;
        const analytical = use.own && data.solversOf.analytical_first_step.includes(recipe.solver);
        if (analytical && recipe.analytical_first_step) {
            if (use.fromNoise) {
                found.sigmas = withFirstMidpoint(table, found.sigmas);
                inserted = 1;
            } else if (asked) {
                tell("the analytical first step starts from pure noise; it was left out here");
            }
        }
        const perStep = TWO_CALLS.has(use.sampler) ? 2 : 1;
        const start = answer.skipped + inserted;
        const point = (calls) => Math.min(start + calls / perStep, found.sigmas.length - 1);
        answer.freeuSpans = answer.freeu.map(([first, last]) => [
            point(Math.floor((first - 1) / perStep) * perStep),
            point(Math.ceil(last / perStep) * perStep),
        ]);
        Object.assign(answer, found);
        answer.endSigma = found.sigmas[found.sigmas.length - 1];
        answer.noiseLeft = answer.endSigma > 0;
        const {name, solver, order, prediction, variant} = recipe;
        answer.recipe = {name, solver, order, prediction, variant};
        answer.calibration = asked ? recipe.calibration : "";
    }

    return {view, idle, general, float, represented};
})();
