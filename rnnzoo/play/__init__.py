"""A model that moves under one's hands: sessions recorded as data, the page that shows them, and its server.

Knows neither Lightning nor Hydra: a task says by a `View` what can be done with its model.
"""
