--------------------------------- MODULE Xa ---------------------------------
(***************************************************************************)
(* What can be seen of one transaction from outside: its row in the log,   *)
(* its branches in their databases, and what somebody was told. Each step  *)
(* says when it is allowed, and nothing else; TLC shows that what is       *)
(* promised follows from these rules alone. So a history each of whose     *)
(* steps is allowed here keeps all promises, however it came about.        *)
(*                                                                         *)
(* tests/model/transitions.py is the same relation in Python. A test       *)
(* compares the two, step by step, over all states that TLC reaches. The   *)
(* other modules say how the code keeps to these steps; XaCommit.tla is    *)
(* checked to be a refinement of this one.                                 *)
(*                                                                         *)
(* action here        in the log, or a database (names: core/events.py)    *)
(* ------------------ ---------------------------------------------------- *)
(* Begin, Enlist      INSERT or AMEND of an undecided row                  *)
(* drop_out           a branch of an undecided row is read-only            *)
(* Commit             the row with the decision, votes of yes only         *)
(* Rollback           ABORT that somebody asked for, or a vote of no       *)
(* DeadlinePassed     ABORT by the deadline                                *)
(* OrphanFound        ABORT by the scan, of what the log does not know     *)
(* OnePhaseDone       COMMIT that repeats what a database has decided      *)
(* Rollback_unlogged  the initiator promises that no commit will come      *)
(* prepare_lands      PREPARE in a database                                *)
(* finish             COMMIT or ROLLBACK of what is prepared, by a node    *)
(* session_rolls_back ROLLBACK of it by the session that prepared          *)
(* session_lost       an unprepared branch is gone for good                *)
(* local_commit       COMMIT in one phase                                  *)
(* tombstone          the probe for it                                     *)
(* BranchFinished     the end record                                       *)
(* forget             the log has crashed, with what was not forced        *)
(* prune              the row is deleted                                   *)
(* tell               an answer                                            *)
(* tick               the log's clock                                      *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANT Branches

VARIABLES
    row,       \* "none", "active", "commit", "abort"
    ended,
    enlisted,  \* what an undecided row has
    listed,    \* what the commit has
    known,     \* decisions that were ever in the log
    db,        \* "none", "prepared", "committed", "rolledback"
    one,       \* the key of a one-phase commit: "none", "committed", "tombstone"
    sealed,
    told,
    top        \* the furthest zone of time that was seen

vars == <<row, ended, enlisted, listed, known, db, one, sealed, told, top>>

(* Zones of the log's clock: 0 until D, 1 until H, 2 until W, 3 until P, 4 after that. What may step back is less
   than half of the retention: so never by two zones, once W is over, and never from beyond H to before D. *)
Zones == 0..4
At(z) == z + 1 >= top /\ top' = IF z > top THEN z ELSE top
AnyTime == UNCHANGED top

Init ==
    /\ row = "none" /\ ended = FALSE
    /\ enlisted = {} /\ listed = {} /\ known = {}
    /\ db = [b \in Branches |-> "none"]
    /\ one = "none" /\ sealed = FALSE
    /\ told = {} /\ top = 0

Undecided == row \in {"none", "active"}
NoCommit == "commit" \notin known /\ one # "committed"
MayCommit == ~sealed /\ "ABORTED" \notin told

tick(z) ==  \* Time is seen to pass.
    /\ z > top /\ top' = z
    /\ UNCHANGED <<row, ended, enlisted, listed, known, db, one, sealed, told>>

Begin(z) ==
    /\ At(z) /\ z = 0
    /\ row = "none"
    /\ row' = "active"
    /\ UNCHANGED <<ended, enlisted, listed, known, db, one, sealed, told>>

Enlist(b, z) ==
    /\ At(z) /\ z = 0
    /\ Undecided
    /\ row' = "active"
    /\ enlisted' = enlisted \cup {b}
    /\ UNCHANGED <<ended, listed, known, db, one, sealed, told>>

drop_out(b) ==  \* It wrote nothing. What is prepared is never read-only.
    /\ AnyTime
    /\ Undecided /\ b \in enlisted /\ db[b] \in {"none", "rolledback"}
    /\ enlisted' = enlisted \ {b}
    /\ UNCHANGED <<row, ended, listed, known, db, one, sealed, told>>

Commit(list, z) ==
    /\ At(z) /\ z = 0
    /\ Undecided /\ known = {} /\ one # "committed" /\ MayCommit
    /\ enlisted \subseteq list
    /\ \A b \in list : db[b] = "prepared"
    /\ row' = "commit" /\ listed' = list /\ known' = {"commit"}
    /\ UNCHANGED <<ended, enlisted, db, one, sealed, told>>

Abort ==
    /\ row' = "abort" /\ known' = known \cup {"abort"}
    /\ UNCHANGED <<ended, enlisted, listed, db, one, sealed, told>>

Rollback(z) ==
    /\ At(z) /\ z <= 2
    /\ Undecided /\ NoCommit
    /\ Abort

DeadlinePassed(z) ==  \* Judged by a node's clock, which may be a little off: too early does no harm.
    /\ At(z) /\ (row = "none" => z <= 2)
    /\ Undecided /\ NoCommit
    /\ Abort

OrphanFound(z) ==  \* No upper limit. Where a commit was there before, it is a fence, and nobody hears ABORTED.
    /\ At(z) /\ top' >= 2
    /\ row = "none" /\ one # "committed"
    /\ Abort

OnePhaseDone ==
    /\ AnyTime
    /\ Undecided /\ one = "committed"
    /\ row' = "commit" /\ known' = known \cup {"commit"} /\ ended' = TRUE
    /\ UNCHANGED <<enlisted, listed, db, one, sealed, told>>

Rollback_unlogged ==
    /\ AnyTime
    /\ ~sealed /\ NoCommit
    /\ sealed' = TRUE
    /\ UNCHANGED <<row, ended, enlisted, listed, known, db, one, told>>

prepare_lands(b) ==
    /\ AnyTime
    /\ db[b] = "none"
    /\ db' = [db EXCEPT ![b] = "prepared"]
    /\ UNCHANGED <<row, ended, enlisted, listed, known, one, sealed, told>>

session_lost(b) ==
    /\ AnyTime
    /\ db[b] = "none"
    /\ db' = [db EXCEPT ![b] = "rolledback"]
    /\ UNCHANGED <<row, ended, enlisted, listed, known, one, sealed, told>>

finish(b, to) ==
    /\ AnyTime
    /\ db[b] = "prepared"
    /\ IF b \in listed THEN to = "committed"
       ELSE to = "rolledback" /\ (known # {} \/ sealed \/ "ABORTED" \in told)
    /\ db' = [db EXCEPT ![b] = to]
    /\ UNCHANGED <<row, ended, enlisted, listed, known, one, sealed, told>>

session_rolls_back(b) ==  \* By the session that prepared, which has not voted yes, or has heard of the abort.
    /\ AnyTime
    /\ db[b] = "prepared" /\ b \notin listed
    /\ db' = [db EXCEPT ![b] = "rolledback"]
    /\ UNCHANGED <<row, ended, enlisted, listed, known, one, sealed, told>>

local_commit ==
    /\ AnyTime
    /\ one = "none" /\ known = {} /\ MayCommit
    /\ one' = "committed"
    /\ UNCHANGED <<row, ended, enlisted, listed, known, db, sealed, told>>

tombstone ==
    /\ AnyTime
    /\ one = "none"
    /\ one' = "tombstone"
    /\ UNCHANGED <<row, ended, enlisted, listed, known, db, sealed, told>>

BranchFinished ==
    /\ AnyTime
    /\ row \in {"commit", "abort"} /\ ~ended
    /\ \A b \in listed : db[b] = "committed"
    /\ ended' = TRUE
    /\ UNCHANGED <<row, enlisted, listed, known, db, one, sealed, told>>

forget ==  \* A lazy write is lost with a crash of the log: an end, or what a database knows itself.
    /\ AnyTime
    /\ ended
    /\ ended' = FALSE
    /\ row' = IF row = "commit" /\ one = "committed" THEN "none" ELSE row
    /\ enlisted' = IF row' = "none" THEN {} ELSE enlisted
    /\ UNCHANGED <<listed, known, db, one, sealed, told>>

prune(z) ==
    /\ At(z) /\ z = 4
    /\ ended
    /\ row' = "none" /\ ended' = FALSE /\ enlisted' = {}
    /\ UNCHANGED <<listed, known, db, one, sealed, told>>

tell(what) ==
    /\ AnyTime
    /\ what \notin told
    /\ CASE what = "COMMITTED" -> (one = "committed" \/ "commit" \in known) /\ \A b \in listed : db[b] = "committed"
         [] what = "COMMITTING" -> "commit" \in known
         [] what = "ABORTED" -> NoCommit
    /\ told' = told \cup {what}
    /\ UNCHANGED <<row, ended, enlisted, listed, known, db, one, sealed>>

Next ==
    \/ \E z \in Zones :
         \/ tick(z) \/ Begin(z) \/ Rollback(z) \/ DeadlinePassed(z) \/ OrphanFound(z) \/ prune(z)
         \/ \E b \in Branches : Enlist(b, z)
         \/ \E list \in SUBSET Branches : Commit(list, z)
    \/ OnePhaseDone \/ Rollback_unlogged \/ local_commit \/ tombstone \/ BranchFinished \/ forget
    \/ \E b \in Branches : drop_out(b) \/ prepare_lands(b) \/ session_lost(b) \/ session_rolls_back(b)
    \/ \E b \in Branches, to \in {"committed", "rolledback"} : finish(b, to)
    \/ \E what \in {"COMMITTED", "COMMITTING", "ABORTED"} : tell(what)

Spec == Init /\ [][Next]_vars

(* ---- what follows ---- *)

Committed == {b \in Branches : db[b] = "committed"}

Atomic == Committed # {} => Committed \subseteq listed /\ \A b \in listed : db[b] \in {"prepared", "committed"}

ToldTheTruth ==
    /\ "COMMITTED" \in told => (one = "committed" \/ listed = Committed)
    /\ "COMMITTING" \in told => one = "committed" \/ \A b \in listed : db[b] \in {"prepared", "committed"}
    /\ "ABORTED" \in told => Committed = {} /\ one # "committed"

OneAnswer == ~("ABORTED" \in told /\ told \cap {"COMMITTING", "COMMITTED"} # {})

OnePhaseAlone == one = "committed" => Committed = {} /\ listed = {}

DecisionImmutable == [][(row = "commit" => row' # "abort") /\ (row = "abort" => row' # "commit")]_vars
=============================================================================
