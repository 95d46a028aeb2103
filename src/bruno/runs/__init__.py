"""Runs: a confirmed plan carried out step by step, its log read into progress, its money counted.

    world = World(records=..., vast=..., settings=..., paths=..., clock=..., sleep=...)
    runner = Runner(world)
    run_id = runner.begin(plan, permit)
    runner.carry_on(run_id, on_event=print, cancel=threading.Event())

`acting.perform` is the one road to anything that spends, stops or deletes. This room talks to machines through `fleet` and
remembers through `records`; it prints nothing: faces receive `RunEvent`s.
"""
