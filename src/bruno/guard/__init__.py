"""The guard: nothing that spends, stops or deletes happens without the person's own `yes`.

Pure: no network, no processes, and no disk but the guardrail files. A face shows a `Plan`, `judge` decides on it, `permit`
turns what the person typed into the proof that `fleet` demands. `phrases` catches words with two meanings before a plan
exists, `command` reads raw shell lines, `sanitise` makes text from elsewhere fit for a screen.
"""
