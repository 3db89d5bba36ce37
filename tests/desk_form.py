"""The form of Prefect's page in which a person starts a run, filled in a browser, and what follows."""

import json
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import patience

SET = """((e, v) => {
  Object.getOwnPropertyDescriptor(Object.getPrototypeOf(e), 'value').set.call(e, v);
  for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}));
})"""
OVERRIDES = "[...document.querySelectorAll('textarea')].find(e => e.value.startsWith('{'))"
NAME = "document.querySelector('input[type=text]')"
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def ask(api, path, **body):
    "What the API answers to a question with a body; 503 means that its database is busy, and to ask again."
    request = Request(f"{api}/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    for pause in (1, 2, 4, 8, 0):
        try:
            with urlopen(request, timeout=60) as response:
                return json.load(response)
        except HTTPError as error:
            if error.code != 503 or not pause:
                raise
            time.sleep(pause)


def choose(tab, wanted):
    "Choose a value in the list that offers it."
    script = """(wanted => {
      for (const list of document.querySelectorAll('select')) {
        const option = [...list.options].find(o => o.text.trim() === wanted);
        if (!option) continue;
        list.selectedIndex = option.index;
        list.dispatchEvent(new Event('change', {bubbles: true}));
        return true;
      }
      return false;
    })"""
    tab.until(f"{script}({json.dumps(wanted)})")


def open_form(tab, base, deployment):
    "Open the form of a deployment; its overrides."
    tab.open(f"{base}/deployments/deployment/{deployment}/run")
    tab.until_text("as_of", "Submit", "Use only what was known")
    return json.loads(tab.until(f"{OVERRIDES}?.value"))


def submit(tab, api, deployment, name, overrides):
    "Send the form; the run that it made, as soon as the server knows it."
    tab.run(f"{SET}({OVERRIDES}, {json.dumps(json.dumps(overrides, indent=2))})")
    tab.run(f"{SET}({NAME}, {json.dumps(name)})")
    tab.click("document.querySelector('button[type=submit]')")
    mine = {"deployment_id": {"any_": [deployment]}}

    def by_hand():
        runs = ask(api, "flow_runs/filter", flow_runs=mine)
        runs = [run for run in runs if not run["auto_scheduled"]]
        return [run for run in runs if run["parameters"]["overrides"] == overrides]

    [run] = patience.wait_until(by_hand, tab.process, every=0.5)
    return run["id"]


def end_of(api, run, server, schedule):
    "A run that has ended; a failed one fails here with its message, and one that does nothing as well."

    def state():
        return ask(api, "flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]

    def over():
        return now if (now := state())["state_type"] in ENDED else None

    def signs():
        own = [child.pid for child in schedule.children()]
        return state()["state_name"], patience.signs_of_life(own)

    ended = patience.wait_until(over, server, schedule, every=1, signs=signs)
    assert ended["state_type"] == "COMPLETED", f"{ended['state_name']}: {ended['state']['message']}"
    return ended
