"""What the server answers: the page, its files, and the views, each a stream of JSON lines.

A view is a generator function view(model, body, cache) that yields dicts. Its events are sent as
they are computed; the last line says how it ended.
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mingpt.explorer import (
    attention_view,
    cell_view,
    circuit_view,
    facts,
    feature_view,
    models,
    pictures,
    requests,
    scripts,
    sweep_view,
)
from mingpt.explorer.guard import Guard
from mingpt.explorer.worker import FAULT, Full, as_line

# {name in a request: the generator function}
VIEWS = {
    "model": models.describe,
    "attention": attention_view.attention,
    "explain": attention_view.explain,
    "circuit": circuit_view.circuit,
    "faithfulness": circuit_view.faithfulness,
    "sweep": sweep_view.sweep,
    "cell": cell_view.cell,
    "joint": cell_view.joint,
    "feature": feature_view.feature,
    "script": scripts.script,
    "picture": pictures.picture,
    "csv": pictures.csv,
}
OWN_FILES = Path(__file__).with_name("static")
# What the pages of the analyses draw with, the explorer draws with too.
SHARED_FILES = Path(__file__).parent.parent / "interpretability" / "pages"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}


def read_files():
    """{name: (bytes, type)} of all files that may be asked for."""
    files = {}
    for folder, suffixes in ((SHARED_FILES, (".js", ".css")), (OWN_FILES, KINDS)):
        for path in sorted(folder.iterdir()):
            if path.suffix in suffixes:
                files[path.name] = path.read_bytes(), KINDS[path.suffix]
    return files


class Explorer:
    """The answers to all requests; models: a Models, worker: a Worker."""

    def __init__(self, models, worker):
        self.models = models
        self.worker = worker
        # Read once: a name in a request is looked up here, and never becomes a path.
        self.files = read_files()

    async def page(self, request):
        return self.file("index.html")

    async def static(self, request):
        return self.file(request.path_params["name"])

    def file(self, name):
        if name not in self.files:
            raise HTTPException(404, "there is no such file")
        content, kind = self.files[name]
        return Response(content, media_type=kind)

    async def view(self, request):
        """Start what is asked for; its lines follow."""
        name = request.path_params["view"]
        if name not in VIEWS and name != "facts":
            raise HTTPException(404, "there is no such view")
        try:
            body = requests.read_body(await request.body())
            tab, lane = requests.read_lane(body, name)
            job = self.worker.open(tab, lane)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        except Full as error:
            raise HTTPException(429, str(error)) from error
        return StreamingResponse(self.lines(job, name, body), media_type="application/x-ndjson")

    async def lines(self, job, name, body):
        """The lines of an answer; who stops listening cancels it."""
        try:
            if name == "facts":
                yield as_line(facts.describe(self.models))
                job.end({"end": True, "seconds": 0})
            else:
                async for event in self.models.load(body.get("model")):
                    yield as_line(event)
                    if job.is_over:
                        break
                else:
                    loaded = self.models.get(body["model"])
                    # Only the job holds the view, so that with its end goes all that this holds.
                    self.worker.start(
                        job, VIEWS[name](loaded.model, body, loaded.cache), loaded.threads
                    )
            async for line in job.lines():
                yield line
        except ValueError as error:
            yield as_line({"error": str(error)})
        finally:
            self.worker.close(job)


async def refuse(request, error):
    """What is not there, or not to be had in this way."""
    return JSONResponse({"error": str(error.detail)}, error.status_code)


async def fail(request, error):
    """A fault of ours; starlette goes on to tell it to the terminal."""
    return JSONResponse({"error": FAULT}, 500)


def build_app(models, worker, token, host, port):
    """The ASGI application, guarded."""
    explorer = Explorer(models, worker)
    routes = [
        Route("/", explorer.page),
        Route("/static/{name}", explorer.static),
        Route("/api/{view}", explorer.view, methods=["POST"]),
    ]
    handlers = {HTTPException: refuse, Exception: fail}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, token, host, port)
