"""Do the tests notice when the code is wrong? Change one thing at a time and run the tests that reach it.

    make mutate                       # a sample of 300 changes, drawn by a fixed seed
    python -m tests.mutation --help   # other samples, one change, only the recording

Three steps: `recording` runs the suite once and notes which test enters which function; `mutants` finds the places
that can be changed and draws a sample; `running` applies each change to a copy of the checkout and runs the tests that
enter the changed function, until one fails. A change that no test notices is a survivor: it needs a test, or a reason
in `accepted.json` why it makes no difference.

mutmut and cosmic-ray do not know packages that are mapped to other folders, as `modeling/` is to `hf_any3d.modeling`,
and importing torch anew for every change would take most of the time; here a process that has imported it forks.
"""
