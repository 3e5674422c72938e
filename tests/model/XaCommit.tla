------------------------------ MODULE XaCommit ------------------------------
(***************************************************************************)
(* One global transaction over XA branches: the decision as a compare-and- *)
(* set on its log row, presumed abort with the scan for orphans, and the   *)
(* Windows (docs/explanation/windows.md). A crash of a node, a lost reply, *)
(* a zombie and a repeated request need no actions of their own: whatever  *)
(* is on its way may stay there for ever or arrive at any later time, and  *)
(* every request may be made again.                                        *)
(*                                                                         *)
(* action here        code                                                 *)
(* ------------------ ---------------------------------------------------- *)
(* prepare            txcoord_client/_finish.py prepare, _xa/branch.py     *)
(* prepare_lands      the database: marker and PREPARE, late as may be     *)
(* prepare_heard      _xa/branch.py Branch.prepare returns: a vote of yes  *)
(* session_lost       the database: a session ends before PREPARE          *)
(* Commit             core/machine.py _commit, engine Coordinator.commit   *)
(* Rollback           core/machine.py _rollback: somebody asks for abort   *)
(* Rollback_unlogged  the same, sealed and without a row (rule 3)          *)
(* told_unlogged      its answer                                           *)
(* statement_checks   adapters/sql: the writing statement looks at the     *)
(*                    clock (Change.not_after_us) ...                      *)
(* statement_writes   ... and inserts the row, a while later               *)
(* statement_ends     TOO_LATE or CONFLICT: nothing was written            *)
(* scan               engine/recovery.py Recovery.scan: list_prepared      *)
(* judge              engine/recovery.py Recovery._judge, _act             *)
(* fence              core/machine.py _orphan: the ABORT row of the orphan *)
(* finish             engine/phase_two.py, ports.Finisher.finish           *)
(* finish_late        engine/recovery.py Recovery._finish_late             *)
(* BranchFinished     core/settle.py progress, close: the end record       *)
(* HeuristicSeen      core/settle.py progress: parked                      *)
(* prune              adapters/sql/upkeep.py prune                         *)
(* by_hand            a person: ROLLBACK PREPARED past the coordinator     *)
(* tick, step_back    the log's clock                                      *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Listed,    \* the branches that the initiator knows of
    Stray,     \* prepared by somebody, and in nobody's list
    D, H, W, P, MaxClock,
    StmtMax,   \* the longest statement of the log, in ticks (statement time-out)
    BackMax,   \* by how much the log's clock may step back, in all
    Hand,      \* TRUE: a person may roll a prepared branch back
    Broken     \* rules that are broken on purpose; {} is the product

Branches == Listed \cup Stray
Foreign == "foreign"
None == "none"
NoRow == [dec |-> None, at |-> 0, scanner |-> FALSE, ended |-> FALSE]
Idle == 99
Formed == 98
Broke(rule) == rule \in Broken
ASSUME D < H /\ H < W /\ W < P /\ P < MaxClock
ASSUME StmtMax + BackMax < P - W + 1 \/ Broke("short_retention")

VARIABLES
    clk,      \* the log's clock, and for simplicity that of the resources
    backs,    \* how much it has stepped back
    row,      \* the log row: [dec, at, scanner, ended] or NoRow
    w,        \* INSERTs on their way, by kind: Idle, Formed, or the ticks that are left to a statement
    at,       \* when an abort of the scanner was decided in its node
    learned,  \* decisions that some node knows of and may carry out, however late
    db,       \* what each database has
    vote,     \* what the initiator has heard
    sdk,      \* "open", "committing" (Commit was sent, perhaps often), "sealed" (Rollback was sent, no Commit ever)
    seen,     \* the branch that the scan has listed and not judged yet
    told,     \* answers that were given, to anybody
    hand,     \* a person has finished a branch
    parked,   \* ... which was seen, and parked
    logged    \* for the proof only: decisions that were ever in the log

vars == <<clk, backs, row, w, at, learned, db, vote, sdk, seen, told, hand, parked, logged>>

Kinds == {"commit", "abort", "fence"}
Dec(kind) == IF kind = "commit" THEN "commit" ELSE "abort"

Init ==
    /\ clk = 0 /\ backs = 0
    /\ row = NoRow
    /\ w = [k \in Kinds |-> Idle]
    /\ at = 0
    /\ learned = {}
    /\ db = [b \in Branches \cup {Foreign} |-> IF b = Foreign THEN "prepared" ELSE "open"]
    /\ vote = [b \in Listed |-> FALSE]
    /\ sdk = "open"
    /\ seen = None
    /\ told = {}
    /\ hand = {} /\ parked = FALSE /\ logged = {}

(* ---- the branch's session ---- *)

prepare(b) ==
    /\ db[b] = "open"
    /\ b \in Listed => sdk = "open"
    /\ db' = [db EXCEPT ![b] = "sent"]
    /\ UNCHANGED <<clk, backs, row, w, at, learned, vote, sdk, seen, told, hand, parked, logged>>

prepare_lands(b) ==  \* However late: that the marker's INSERT carries the limit H (rule 5) matters in OnePhase.tla only.
    /\ db[b] = "sent"
    /\ db' = [db EXCEPT ![b] = "prepared"]
    /\ UNCHANGED <<clk, backs, row, w, at, learned, vote, sdk, seen, told, hand, parked, logged>>

prepare_heard(b) ==
    /\ b \in Listed /\ sdk = "open" /\ ~vote[b]
    /\ db[b] # "open"
    /\ \/ db[b] = "prepared"
       \/ Broke("tag_unchecked") /\ db[b] = "gone"  \* PREPARE answered ROLLBACK, without an error.
    /\ vote' = [vote EXCEPT ![b] = TRUE]
    /\ UNCHANGED <<clk, backs, row, w, at, learned, db, sdk, seen, told, hand, parked, logged>>

session_lost(b) ==
    /\ db[b] \in {"open", "sent"}
    /\ db' = [db EXCEPT ![b] = "gone"]
    /\ UNCHANGED <<clk, backs, row, w, at, learned, vote, sdk, seen, told, hand, parked, logged>>

(* ---- requests ---- *)

Expired == row.scanner /\ row.at > W /\ ~Broke("fence_is_outcome")

Answer ==  \* of a decided row
    IF Expired THEN told
    ELSE IF row.dec = "abort" THEN told \cup {"ABORTED"}
    ELSE IF row.ended THEN told \cup {"COMMITTED"}
    ELSE told \cup {"COMMITTING"}

Refused ==  \* after W and without a row
    IF Broke("late_is_aborted") THEN told \cup {"ABORTED"} ELSE told

AllVoted == \A b \in Listed : vote[b]

(* What a node makes of a request about a transaction that it knows no row of. It has looked at the clock by then. *)
Form(kind) ==
    /\ w[kind] = Idle
    /\ w' = [w EXCEPT ![kind] = Formed]
    /\ UNCHANGED told

Commit ==
    /\ sdk = "committing" \/ (sdk = "open" /\ (AllVoted \/ Broke("vote_missing")))
    /\ sdk' = "committing"
    /\ \/ row.dec # None /\ told' = Answer /\ UNCHANGED w
       \/ clk <= D /\ Form("commit")
       \/ clk > D /\ clk <= W /\ Form("abort")
       \/ row.dec = None /\ clk > W /\ told' = Refused /\ UNCHANGED w
    /\ UNCHANGED <<clk, backs, row, at, learned, db, vote, seen, hand, parked, logged>>

Rollback ==  \* with a probe where one-phase is possible: see OnePhase.tla
    /\ \/ row.dec # None /\ told' = Answer /\ UNCHANGED w
       \/ clk <= W /\ Form("abort")
       \/ Broke("no_limit_of_aborts") /\ row.dec = None /\ Form("abort")
       \/ row.dec = None /\ clk > W /\ told' = Refused /\ UNCHANGED w
    /\ UNCHANGED <<clk, backs, row, at, learned, db, vote, sdk, seen, hand, parked, logged>>

Rollback_unlogged ==
    /\ sdk = "open" \/ (Broke("unlogged_after_commit") /\ sdk = "committing")
    /\ sdk' = "sealed"
    /\ learned' = learned \cup {"abort"}
    /\ UNCHANGED <<clk, backs, row, w, at, db, vote, seen, told, hand, parked, logged>>

told_unlogged ==
    /\ sdk = "sealed"
    /\ told' = told \cup {"ABORTED"}
    /\ UNCHANGED <<clk, backs, row, w, at, learned, db, vote, sdk, seen, hand, parked, logged>>

(* ---- the log ---- *)

Limit(kind) ==
    IF Broke("limit_in_node") \/ (Broke("no_limit_of_aborts") /\ kind = "abort") THEN MaxClock
    ELSE IF kind = "commit" THEN D
    ELSE IF kind = "abort" THEN W
    ELSE IF at <= W /\ ~Broke("fence_without_limit") THEN W ELSE MaxClock

statement_checks(kind) ==
    /\ w[kind] = Formed
    /\ w' = [w EXCEPT ![kind] = IF clk <= Limit(kind) THEN StmtMax ELSE Idle]
    /\ UNCHANGED <<clk, backs, row, at, learned, db, vote, sdk, seen, told, hand, parked, logged>>

statement_writes(kind) ==
    /\ w[kind] \in 0..StmtMax
    /\ w' = [w EXCEPT ![kind] = Idle]
    /\ row.dec = None \/ (Broke("no_compare_and_set") /\ ~row.ended)
    /\ row' = [dec |-> Dec(kind), at |-> IF kind = "fence" THEN at ELSE 0, scanner |-> kind = "fence",
               ended |-> FALSE]
    /\ at' = IF kind = "fence" THEN 0 ELSE at
    /\ learned' = learned \cup {Dec(kind)}
    /\ logged' = logged \cup {Dec(kind)}
    /\ UNCHANGED <<clk, backs, db, vote, sdk, seen, told, hand, parked>>  \* The answer: Commit or Rollback, again.

statement_ends(kind) ==  \* CONFLICT: the request is judged again, by the row. Or the time-out.
    /\ w[kind] \in 0..StmtMax
    /\ row.dec # None \/ w[kind] = 0
    /\ w' = [w EXCEPT ![kind] = Idle]
    /\ at' = IF kind = "fence" THEN 0 ELSE at
    /\ UNCHANGED <<clk, backs, row, learned, db, vote, sdk, seen, told, hand, parked, logged>>

prune ==
    /\ row.dec # None
    /\ row.ended \/ Broke("prune_unfinished")
    /\ clk > P \/ Broke("prune_before_P")
    /\ row' = NoRow
    /\ UNCHANGED <<clk, backs, w, at, learned, db, vote, sdk, seen, told, hand, parked, logged>>

(* ---- the scan ---- *)

scan(b) ==  \* The databases are read first, the log after them.
    /\ seen = None
    /\ db[b] = "prepared"
    /\ b = Foreign => Broke("log_id_unchecked")
    /\ ~Broke("no_scan")
    /\ seen' = b
    /\ UNCHANGED <<clk, backs, row, w, at, learned, db, vote, sdk, told, hand, parked, logged>>

judge ==
    /\ seen # None
    /\ seen' = None
    /\ IF row.dec # None
       THEN /\ learned' = learned \cup {row.dec}  \* Another node's row: taken over, or finished late.
            /\ UNCHANGED <<w, at, db>>
       ELSE /\ clk > H
            /\ IF Broke("no_fence") THEN learned' = learned \cup {"abort"} /\ UNCHANGED <<w, at>>
               ELSE /\ w["fence"] = Idle
                    /\ w' = [w EXCEPT !["fence"] = Formed]
                    /\ at' = clk
                    /\ UNCHANGED learned
            /\ db' = IF seen = Foreign THEN [db EXCEPT ![Foreign] = "rolledback"] ELSE db
    /\ UNCHANGED <<clk, backs, row, vote, sdk, told, hand, parked, logged>>

(* ---- phase two ---- *)

finish(b, dec) ==  \* Any node that knows the decision, as late as may be. The lease is for efficiency: TakeOver.tla.
    /\ dec \in learned
    /\ db[b] = "prepared"
    /\ dec = "commit" => b \in Listed
    /\ db' = [db EXCEPT ![b] = IF dec = "commit" THEN "committed" ELSE "rolledback"]
    /\ UNCHANGED <<clk, backs, row, w, at, learned, vote, sdk, seen, told, hand, parked, logged>>

finish_late(b) ==  \* Prepared, and not in the list of the commit: a bug or an attack.
    /\ row.dec # None /\ row.dec = "commit"
    /\ b \in Stray /\ db[b] = "prepared"
    /\ db' = [db EXCEPT ![b] = "rolledback"]
    /\ UNCHANGED <<clk, backs, row, w, at, learned, vote, sdk, seen, told, hand, parked, logged>>

BranchFinished ==
    /\ row.dec # None /\ ~row.ended /\ ~parked
    /\ \A b \in Listed :
         IF row.dec = "commit"
         THEN db[b] = "committed" \/ (Broke("absent_is_done") /\ db[b] # "prepared")  \* The marker, or the tag.
         ELSE db[b] # "prepared"  \* Done for now: what lands later is the scan's.
    /\ row' = [row EXCEPT !.ended = TRUE]
    /\ UNCHANGED <<clk, backs, w, at, learned, db, vote, sdk, seen, told, hand, parked, logged>>

by_hand(b) ==
    /\ Hand /\ b \in Listed /\ db[b] = "prepared"
    /\ hand = {}
    /\ hand' = {b}
    /\ db' = [db EXCEPT ![b] = "rolledback"]
    /\ UNCHANGED <<clk, backs, row, w, at, learned, vote, sdk, seen, told, parked, logged>>

HeuristicSeen ==
    /\ row.dec # None /\ row.dec = "commit" /\ ~row.ended /\ ~parked
    /\ \E b \in Listed : db[b] \in {"rolledback", "gone"}
    /\ parked' = TRUE
    /\ UNCHANGED <<clk, backs, row, w, at, learned, db, vote, sdk, seen, told, hand, logged>>

(* ---- time ---- *)

tick ==
    /\ clk < MaxClock
    /\ \A k \in Kinds : w[k] # 0  \* A statement of full length has ended.
    /\ clk' = clk + 1
    /\ w' = [k \in Kinds |-> IF w[k] \in 1..StmtMax THEN w[k] - 1 ELSE w[k]]
    /\ UNCHANGED <<backs, row, at, learned, db, vote, sdk, seen, told, hand, parked, logged>>

step_back ==
    /\ backs < BackMax /\ clk > 0
    /\ backs' = backs + 1
    /\ clk' = clk - 1
    /\ UNCHANGED <<row, w, at, learned, db, vote, sdk, seen, told, hand, parked, logged>>

Next ==
    \/ \E b \in Branches : prepare(b) \/ prepare_lands(b) \/ prepare_heard(b) \/ session_lost(b)
    \/ Commit \/ Rollback \/ Rollback_unlogged \/ told_unlogged
    \/ \E k \in Kinds : statement_checks(k) \/ statement_writes(k) \/ statement_ends(k)
    \/ prune
    \/ \E b \in Branches \cup {Foreign} : scan(b)
    \/ judge
    \/ \E b \in Branches, d \in {"commit", "abort"} : finish(b, d)
    \/ \E b \in Branches : finish_late(b) \/ by_hand(b)
    \/ BranchFinished \/ HeuristicSeen
    \/ tick \/ step_back

Spec == Init /\ [][Next]_vars

(* ---- what must hold ---- *)

Committed == {b \in Branches : db[b] = "committed"}

Atomic ==  \* All or none, by what the databases have.
    Committed # {} => \A b \in Listed \ hand : db[b] \in {"prepared", "committed"}

ToldTheTruth ==
    /\ "COMMITTED" \in told => Committed = Listed
    /\ "COMMITTING" \in told => \A b \in Listed \ hand : db[b] \in {"prepared", "committed"}
    /\ "ABORTED" \in told => Committed = {}

OneAnswer == ~("ABORTED" \in told /\ told \cap {"COMMITTING", "COMMITTED"} # {})

EndIsTrue == (row.dec # None /\ row.ended /\ row.dec = "commit") => Committed = Listed

StrayNeverCommitted == Committed \cap Stray = {}

ForeignUntouched == db[Foreign] = "prepared"

DecisionImmutable == [][row.dec # None /\ row'.dec # None => row'.dec = row.dec]_vars

(* It is a refinement of Xa.tla: each step is one of those, or cannot be seen from outside. Where a statement and a step
   back together are no longer than the grace, the zones of the two agree. *)
ZoneOf(t) == IF t <= D THEN 0 ELSE IF t <= H THEN 1 ELSE IF t <= W THEN 2 ELSE IF t <= P THEN 3 ELSE 4

Seen(b) == CASE db[b] \in {"open", "sent"} -> "none" [] db[b] = "gone" -> "rolledback" [] OTHER -> db[b]

Observed == INSTANCE Xa WITH
    row <- row.dec, ended <- row.ended, enlisted <- {}, known <- logged,
    listed <- IF "commit" \in logged THEN Listed ELSE {},
    db <- [b \in Branches |-> Seen(b)],
    one <- "none", sealed <- sdk = "sealed", top <- ZoneOf(clk + backs)

RefinesXa == Observed!Spec

(* Liveness: where recovery goes on, nothing stays prepared. *)
Recovery ==
    /\ WF_vars(tick)
    /\ \A b \in Branches :
         WF_vars(scan(b)) /\ WF_vars(finish(b, "commit")) /\ WF_vars(finish(b, "abort")) /\ WF_vars(finish_late(b))
    /\ SF_vars(judge)
    /\ \A k \in Kinds : WF_vars(statement_checks(k)) /\ SF_vars(statement_writes(k))
    /\ WF_vars(BranchFinished)

LiveSpec == Spec /\ Recovery
NothingStaysPrepared == <>[](\A b \in Branches : db[b] # "prepared")
=============================================================================
