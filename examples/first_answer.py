"""The five-line app: ask, and see who answered and what left this machine."""

from overspill import Overspill

with Overspill(app="first") as ai:
    reply = ai.chat("Sort in ascending order: 21, 14, 35")

print(reply.text)
print(f"-- {reply.model} on the {reply.route.route}, {reply.route.bytes_sent} bytes left")
