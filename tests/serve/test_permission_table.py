"Every route of the service has its line in the permission table."

from starlette.routing import Mount

from stockpredict.access.door import GuardedRoute
from stockpredict.access.permissions import routes_without_line
from stockpredict.serve.app import create_app

from served_desk import build_settings


def real_routes(app):
    "Method and template of every route; a mounted folder answers GET."
    for route in app.router.routes:
        if isinstance(route, Mount):
            yield "GET", route.path
            continue
        for method in getattr(route, "methods", None) or ["WEBSOCKET"]:
            yield method, route.path


def test_every_route_has_its_line_and_its_guard(tmp_path):
    app = create_app(build_settings(tmp_path))
    assert routes_without_line(list(real_routes(app))) == []
    unguarded = [route.path for route in app.router.routes if not isinstance(route.app, GuardedRoute)]
    assert unguarded == []
