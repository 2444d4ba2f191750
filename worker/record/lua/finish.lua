-- Writes the outcome of a task and its terminal event, once.
--
-- task         ns:{id}:task        hash        terminal status and outcome written
-- events       ns:{id}:events      stream      terminal event appended
-- open         ns:open             sorted set  id added; it stays until close.lua
-- checkpoint   ns:{id}:checkpoint  string      deleted
-- dead         ns:dead             stream      dead letter appended, where there is a reason
-- id
-- token        of the claim
-- status
-- outcome      JSON
-- tail         of the event, see append_event.lua
-- dead_reason  why the task becomes a dead letter, or ''
-- Returns 0, also when a former call wrote this outcome and its answer was lost, or -1 when another
-- worker has claimed or ended the task.
local task, events, open, checkpoint, dead = unpack(KEYS)
local id, token, status, outcome, tail, dead_reason = unpack(ARGV)
local held = redis.call('HMGET', task, 'token', 'status')
if held[1] ~= token then return -1 end
if held[2] ~= 'running' then return held[2] == status and 0 or -1 end
local now = stamp(now_s())
redis.call('HSET', task, 'status', status, 'outcome', outcome, 'ended_at', now)
redis.call('ZADD', open, now, id)
append_event(task, events, tail)
if dead_reason ~= '' then
  local request, attempt, owner = unpack(redis.call('HMGET', task, 'request', 'attempt', 'owner'))
  redis.call('XADD', dead, 'MAXLEN', '~', 10000, '*', 'task_id', id, 'request', request or '',
    'attempt', attempt or '0', 'worker', owner or '', 'reason', dead_reason)
end
redis.call('DEL', checkpoint)
return 0
