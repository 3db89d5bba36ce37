"""A clock for vendor clients whose pauses cost a test no time."""


class Clock:
    "Time that passes only when the code sleeps."

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
