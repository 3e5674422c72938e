------------------------------ MODULE OnePhase ------------------------------
(***************************************************************************)
(* A transaction with a single branch, committed in one phase by its own   *)
(* database: the marker key there decides. Whoever aborts asks that        *)
(* database first, by tombstone. Either without a row in the log, or with  *)
(* the row that a begin with a gid has made.                               *)
(*                                                                         *)
(* action here        code                                                 *)
(* ------------------ ---------------------------------------------------- *)
(* Begin              core/machine.py _begin: names the resource           *)
(* commit_one_phase   txcoord_client/_xa/branch.py commit_one_phase: sent  *)
(* marker_lands       the database: INSERT of the marker; its key is held  *)
(* local_commit       the database: COMMIT, late as may be                 *)
(* session_lost       the database: the session ends, and rolls back       *)
(* commit_heard       txcoord_client/_finish.py _one_phase: told COMMITTED *)
(* OnePhaseDone       core/machine.py _one_phase_done: the report          *)
(* Rollback           core/machine.py _rollback, _probe_needed             *)
(* Rollback_unlogged  the same, sealed: no COMMIT was ever sent            *)
(* DeadlinePassed     core/machine.py _deadline                            *)
(* probe, probed      engine/one_phase.py Prober.ask,                      *)
(*                    ports.Finisher.probe_one_phase                       *)
(* give_up            the same: Refused, nothing may be concluded          *)
(* statement_checks   adapters/sql: the ABORT's statement looks at the     *)
(*                    clock ...                                            *)
(* statement_writes   ... and writes, a while later                        *)
(* statement_ends     nothing was written                                  *)
(* prune              adapters/sql/upkeep.py prune                         *)
(* prune_markers      engine/recovery.py prune_markers                     *)
(* tick, step_back    the log's clock, and that of the databases           *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Resources,  \* all of the namespace
    Here,       \* the one of them where the branch is
    D, H, W, P, MaxClock, StmtMax, BackMax,
    Broken      \* rules that are broken on purpose; {} is the product

Broke(rule) == rule \in Broken
ASSUME D < H /\ H < W /\ W < P /\ P < MaxClock /\ StmtMax + BackMax < P - W + 1

VARIABLES
    clk, backs,
    row,    \* "none", "begun", "commit", "abort"
    key,    \* the marker key in each database: "none", "held" (by an open transaction), "done", "tombstone"
    local,  \* the branch: "open", "sent", "held", "committed", "gone"
    sdk,    \* "open", "one" (COMMIT was sent), "sealed"
    ask,    \* who asks for abort, Rollback or DeadlinePassed: [st, never]
    told

vars == <<clk, backs, row, key, local, sdk, ask, told>>

Askers == {"Rollback", "DeadlinePassed"}
Idle == 99
Probing == 98
Formed == 97  \* and below: the ticks that are left to the writing statement
Nobody == [st |-> Idle, never |-> {}]

Init ==
    /\ clk = 0 /\ backs = 0
    /\ row = "none"
    /\ key = [r \in Resources |-> "none"]
    /\ local = "open"
    /\ sdk = "open"
    /\ ask = [a \in Askers |-> Nobody]
    /\ told = {}

Begin ==
    /\ sdk = "open" /\ row = "none" /\ clk <= D
    /\ row' = "begun"
    /\ UNCHANGED <<clk, backs, key, local, sdk, ask, told>>

(* ---- the branch ---- *)

commit_one_phase ==
    /\ sdk = "open" /\ local = "open"
    /\ sdk' = "one" /\ local' = "sent"
    /\ UNCHANGED <<clk, backs, row, key, ask, told>>

marker_lands ==  \* One that finds the key taken fails, and its session rolls back.
    /\ local = "sent"
    /\ clk <= H \/ Broke("marker_without_limit")
    /\ key[Here] = "none" \/ (key[Here] = "tombstone" /\ Broke("tombstone_ignored"))
    /\ key' = [key EXCEPT ![Here] = "held"]
    /\ local' = "held"
    /\ UNCHANGED <<clk, backs, row, sdk, ask, told>>

local_commit ==
    /\ local = "held"
    /\ local' = "committed"
    /\ key' = [key EXCEPT ![Here] = "done"]
    /\ UNCHANGED <<clk, backs, row, sdk, ask, told>>

session_lost ==
    /\ local \in {"open", "sent", "held"}
    /\ local' = "gone"
    /\ key' = IF local = "held" THEN [key EXCEPT ![Here] = "none"] ELSE key
    /\ UNCHANGED <<clk, backs, row, sdk, ask, told>>

commit_heard ==
    /\ sdk = "one" /\ local = "committed"
    /\ told' = told \cup {"COMMITTED"}
    /\ UNCHANGED <<clk, backs, row, key, local, sdk, ask>>

OnePhaseDone ==  \* The initiator's report. It repeats a fact: no limit of time applies.
    /\ sdk = "one" /\ local = "committed"
    /\ row \in {"none", "begun"}
    /\ row' = "commit"
    /\ UNCHANGED <<clk, backs, key, local, sdk, ask, told>>

(* ---- abort ---- *)

Answer == IF row = "abort" THEN told \cup {"ABORTED"} ELSE told \cup {"COMMITTED"}

Rollback ==  \* By anybody, at any time.
    /\ \/ row \in {"commit", "abort"} /\ told' = Answer /\ UNCHANGED ask
       \/ /\ row \in {"none", "begun"} /\ clk <= W
          /\ ask["Rollback"].st = Idle
          /\ ask' = [ask EXCEPT !["Rollback"].st = IF Broke("probe_skipped") THEN Formed ELSE Probing]
          /\ UNCHANGED told
    /\ UNCHANGED <<clk, backs, row, key, local, sdk>>

Rollback_unlogged ==
    /\ sdk = "open" \/ (Broke("sealed_after_commit") /\ sdk = "one")
    /\ row = "none"  \* One that was begun is rolled back in the log.
    /\ sdk' = "sealed"
    /\ told' = told \cup {"ABORTED"}
    /\ UNCHANGED <<clk, backs, row, key, local, ask>>

DeadlinePassed ==
    /\ row = "begun" /\ clk > D
    /\ ask["DeadlinePassed"].st = Idle
    /\ ask' = [ask EXCEPT !["DeadlinePassed"].st = IF Broke("deadline_without_probe") THEN Formed ELSE Probing]
    /\ UNCHANGED <<clk, backs, row, key, local, sdk, told>>

ToAsk == IF row = "begun" THEN {Here} ELSE IF Broke("not_all_probed") THEN Resources \ {Here} ELSE Resources

(* A row that is on its way keeps its markers: what is not there then never was, however late it is asked. *)
Unlimited(a) ==
    IF a = "DeadlinePassed" THEN ~Broke("deadline_probed_until_W") ELSE Broke("no_limit_after_W")

probe(a, r) ==  \* A tombstone. Where the key is held, the local commit is still open: asked again.
    /\ ask[a].st = Probing /\ r \in ToAsk \ ask[a].never
    /\ \/ /\ key[r] = "done"  \* COMMITTED: the probe becomes OnePhaseDone.
          /\ row' = IF row \in {"none", "begun"} THEN "commit" ELSE row
          /\ told' = IF row = "abort" THEN told ELSE told \cup {"COMMITTED"}
          /\ ask' = [ask EXCEPT ![a] = Nobody]
          /\ UNCHANGED key
       \/ /\ key[r] \in {"none", "tombstone"}
          /\ key[r] = "none" => clk <= W \/ Unlimited(a)
          /\ key' = IF Broke("absent_is_never") THEN key ELSE [key EXCEPT ![r] = "tombstone"]
          /\ ask' = [ask EXCEPT ![a].never = @ \cup {r}]
          /\ UNCHANGED <<row, told>>
       \/ /\ key[r] = "held" /\ Broke("held_is_never")
          /\ ask' = [ask EXCEPT ![a].never = @ \cup {r}]
          /\ UNCHANGED <<row, key, told>>
    /\ UNCHANGED <<clk, backs, local, sdk>>

probed(a) ==
    /\ ask[a].st = Probing /\ ToAsk \subseteq ask[a].never
    /\ ask' = [ask EXCEPT ![a] = [st |-> Formed, never |-> {}]]
    /\ UNCHANGED <<clk, backs, row, key, local, sdk, told>>

give_up(a) ==  \* EXPIRED, or IN_PROGRESS: nothing is concluded. Or another row than it was.
    /\ ask[a].st = Probing
    /\ ask' = [ask EXCEPT ![a] = Nobody]
    /\ UNCHANGED <<clk, backs, row, key, local, sdk, told>>

statement_checks(a) ==
    /\ ask[a].st = Formed
    /\ ask' = [ask EXCEPT ![a].st =
         IF a = "DeadlinePassed" \/ clk <= W \/ Broke("no_limit_after_W") THEN StmtMax ELSE Idle]
    /\ UNCHANGED <<clk, backs, row, key, local, sdk, told>>

statement_writes(a) ==  \* An INSERT where there was no row, else an AMEND of the undecided one.
    /\ ask[a].st \in 0..StmtMax
    /\ ask' = [ask EXCEPT ![a] = Nobody]
    /\ row = "begun" \/ (row = "none" /\ a = "Rollback")
    /\ row' = "abort"
    /\ told' = told \cup {"ABORTED"}
    /\ UNCHANGED <<clk, backs, key, local, sdk>>

statement_ends(a) ==
    /\ ask[a].st \in 0..StmtMax
    /\ row \in {"commit", "abort"} \/ ask[a].st = 0
    /\ ask' = [ask EXCEPT ![a] = Nobody]
    /\ UNCHANGED <<clk, backs, row, key, local, sdk, told>>

(* ---- retention and time ---- *)

prune ==
    /\ row \in {"commit", "abort"} /\ clk > P
    /\ row' = "none"
    /\ UNCHANGED <<clk, backs, key, local, sdk, ask, told>>

prune_markers(r) ==  \* After its own P, and not while its transaction is on its way.
    /\ key[r] \in {"done", "tombstone"}
    /\ clk > P \/ (Broke("markers_pruned_early") /\ clk > D)
    /\ row # "begun" \/ Broke("markers_pruned_under_a_row")
    /\ key' = [key EXCEPT ![r] = "none"]
    /\ UNCHANGED <<clk, backs, row, local, sdk, ask, told>>

tick ==
    /\ clk < MaxClock
    /\ \A a \in Askers : ask[a].st # 0
    /\ clk' = clk + 1
    /\ ask' = [a \in Askers |-> IF ask[a].st \in 1..StmtMax THEN [ask[a] EXCEPT !.st = @ - 1] ELSE ask[a]]
    /\ UNCHANGED <<backs, row, key, local, sdk, told>>

step_back ==
    /\ backs < BackMax /\ clk > 0
    /\ backs' = backs + 1 /\ clk' = clk - 1
    /\ UNCHANGED <<row, key, local, sdk, ask, told>>

Next ==
    \/ Begin
    \/ commit_one_phase \/ marker_lands \/ local_commit \/ session_lost \/ commit_heard \/ OnePhaseDone
    \/ Rollback \/ Rollback_unlogged \/ DeadlinePassed
    \/ \E a \in Askers :
         \/ \E r \in Resources : probe(a, r)
         \/ probed(a) \/ give_up(a) \/ statement_checks(a) \/ statement_writes(a) \/ statement_ends(a)
    \/ prune
    \/ \E r \in Resources : prune_markers(r)
    \/ tick \/ step_back

Spec == Init /\ [][Next]_vars

(* ---- what must hold ---- *)

ToldTheTruth ==
    /\ "COMMITTED" \in told => local = "committed"
    /\ "ABORTED" \in told => local # "committed"

RowIsTrue ==  \* Also that the report never finds an abort (core/settle.py contradicted).
    /\ row = "commit" => local = "committed"
    /\ row = "abort" => local # "committed"

Exclusive ==  \* Marker and tombstone of one key, while anybody can be told anything.
    /\ local = "held" => key[Here] = "held"
    /\ key[Here] = "done" => local = "committed"
    /\ key[Here] = "tombstone" => local # "committed" \/ (clk + backs > P /\ row # "begun")

DecisionImmutable == [][(row = "commit" => row' # "abort") /\ (row = "abort" => row' # "commit")]_vars

(* Liveness: what was begun ends, however long its database could not be asked. *)
Recovery ==
    LET a == "DeadlinePassed"
    IN /\ WF_vars(tick) /\ WF_vars(local_commit \/ session_lost)
       /\ SF_vars(DeadlinePassed) /\ \A r \in Resources : SF_vars(probe(a, r))
       /\ SF_vars(probed(a)) /\ SF_vars(statement_checks(a)) /\ SF_vars(statement_writes(a))

LiveSpec == Spec /\ Recovery
WhatBeganEnds == (row = "begun") ~> (row \in {"commit", "abort"})
=============================================================================
