"""Plain pages for a browser: the repositories, and a repository's branches, tags and files."""

import re
from urllib.parse import quote

import jinja2
from aiohttp import web

from sandbox.hub.http import STORE, find_repo, may_read

_PAGES = {
    "base": """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; }
code, pre { background: #8882; padding: .1rem .3rem; overflow-x: auto; } .number { text-align: right; }
</style></head><body><p><a href="/">All repositories</a></p>
<h1>{{ title }}</h1>
{% block main %}{% endblock %}
</body></html>""",
    "index": """{% extends "base" %}{% block main %}
<ul>{% for path in paths %}<li><a href="/{{ path }}">{{ path }}</a></li>{% else %}<li>None yet.</li>{% endfor %}</ul>
{% endblock %}""",
    "repo": """{% extends "base" %}{% block main %}
<p>Revision <b>{{ revision }}</b>, commit <code>{{ commit.id[:8] }}</code> of {{ commit.date }}: {{ commit.title }}</p>
{% if "config.json" in commit.files %}
<pre>AutoModelForCausalLM.from_pretrained("{{ repo.id }}", revision="{{ revision }}")</pre>
{% endif %}
<h2>Files</h2>
<table>{% for path, entry in commit.files.items() %}
<tr><td><a href="/{{ repo.path }}/resolve/{{ revision | segment }}/{{ path | urlencode }}">{{ path }}</a></td>
<td class="number">{{ entry.size | filesizeformat }}</td><td><code>{{ entry.etag[:12] }}</code></td></tr>
{% endfor %}</table>
{% for kind, names in refs.items() if names %}
<h2>{{ kind }}</h2>
<table>{% for name, target in names %}
<tr><td><a href="/{{ repo.path }}/tree/{{ name | segment }}">{{ name }}</a></td>
<td><code>{{ target[:8] }}</code></td></tr>
{% endfor %}</table>
{% endfor %}
{% endblock %}""",
}
_TEMPLATES = jinja2.Environment(loader=jinja2.DictLoader(_PAGES), autoescape=True, undefined=jinja2.StrictUndefined)
_TEMPLATES.filters["segment"] = lambda text: quote(text, safe="")


def _render(page: str, **values: object) -> web.Response:
    return web.Response(
        text=_TEMPLATES.get_template(page).render(**values),
        content_type="text/html",
        headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


def _by_number(name: str) -> list[tuple[str, int]]:
    """Sort key under which step2 comes before step16."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


async def index(request: web.Request) -> web.Response:
    seen = [repo.path for repo in request.app[STORE].repos() if may_read(request, repo)]
    return _render("index", title="Repositories", paths=seen)


async def repo_page(request: web.Request) -> web.Response:
    repo = find_repo(request)
    revision = request.match_info.get("rev", "main")
    refs = repo.refs
    listed = {
        k.capitalize(): sorted(refs[k].items(), key=lambda item: _by_number(item[0])) for k in ("branches", "tags")
    }
    return _render("repo", title=repo.path, repo=repo, revision=revision, commit=repo.find(revision), refs=listed)


ROUTES = [
    web.get("/", index),
    *(
        web.get(prefix + "/{ns}/{name}" + rest, repo_page)
        for prefix in ("", "/{kind:datasets|spaces}")
        for rest in ("", "/tree/{rev}", "/commit/{rev}")
    ),
]
