"""A response that is written at once leaves a connection that can be used and closed like any other."""

import asyncio
import socket

from stockpredict.serve.wire import WireConfig, WireServer

READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", b"ok"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def refuse(scope, receive, send):
    raise AssertionError("the application was asked")


def test_a_connection_closes_quietly_after_an_instant_answer():
    problems, answers = [], []

    async def work():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        listener = socket.create_server(("127.0.0.1", 0))
        config = WireConfig(
            refuse, instant=lambda scope: READY, lifespan="off", log_config=None, timeout_graceful_shutdown=2
        )
        server = WireServer(config)
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        for _ in range(2):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            for _ in range(2):
                writer.write(REQUEST)
                answers.append(await reader.readuntil(b"ok"))
            writer.close()
            while server.server_state.connections:
                await asyncio.sleep(0.01)
        server.should_exit = True
        await serving

    asyncio.run(work())
    assert len(answers) == 4 and all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert problems == []
