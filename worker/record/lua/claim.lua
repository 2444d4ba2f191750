-- A worker asks for a task. Every later write carries the fence that this gives.
--
-- KEYS[1]  ns:{id}:task    hash        written when claimed
-- KEYS[2]  ns:{id}:events  stream      event `started` appended when claimed to run
-- KEYS[3]  ns:open         sorted set  id touched
-- ARGV     id, owner, event tail or '', request JSON, deadline in seconds after submission or '',
--          most attempts, token of this call, seconds of lease, Unix time after which the message
--          is not to be begun or '', queue
-- gives    {'run' | 'cancelled' | 'expired' | 'overdue' | 'exhausted', fence, attempt,
--           submitted_at, now, step of the checkpoint or 0}
--          {'ended', 0, attempt, status, outcome JSON}  |  {'held', 0, attempt, owner}
--
-- While a task is running and its lease lasts, every other message of it is told `held`. When the
-- lease has run out, its owner is taken for dead: the fence shuts it out if it is not.
local task, events, open = KEYS[1], KEYS[2], KEYS[3]
local id, owner, tail, request, deadline_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
-- Before anything is written: what is no sorted set is refused, and the message goes back.
redis.call('ZSCORE', open, id)
local status = redis.call('HGET', task, 'status')
local attempt = tonumber(redis.call('HGET', task, 'attempt') or '0')
if status and status ~= 'queued' and status ~= 'running' then
  local outcome = redis.call('HGET', task, 'outcome') or '{}'
  -- As MAX_MESSAGE_BYTES: whoever reads it takes many times that memory.
  if #outcome > 8388608 then return redis.error_reply('ERR an outcome of ' .. #outcome .. ' bytes') end
  return {'ended', 0, attempt, status, outcome}
end
local now = now_s()
local stamp, untils = string.format('%.6f', now), string.format('%.6f', now + ARGV[8])
if status == 'running' and redis.call('HGET', task, 'token') == ARGV[7] then
  -- The same call again: its answer was lost on the way.
  redis.call('HSET', task, 'lease_until', untils)
  local had = redis.call('HMGET', task, 'fence', 'submitted_at', 'started_at', 'answer', 'resumed')
  return {had[4], tonumber(had[1]), attempt, had[2], had[3], tonumber(had[5])}
end
if status == 'running' and tonumber(redis.call('HGET', task, 'lease_until') or '0') > now then
  return {'held', 0, attempt, redis.call('HGET', task, 'owner')}
end
if not status then
  redis.call('HSET', task, 'request', request, 'submitted_at', stamp, 'queue', ARGV[10])
  if deadline_s ~= '' then
    redis.call('HSET', task, 'deadline_at', string.format('%.6f', now + deadline_s))
  end
end
local submitted = redis.call('HGET', task, 'submitted_at')
local answer = 'run'
if redis.call('HGET', task, 'cancel_requested') then
  answer = 'cancelled'
elseif deadline_s ~= '' and now > tonumber(submitted) + tonumber(deadline_s) then
  answer = 'expired'
elseif ARGV[9] ~= '' and now > tonumber(ARGV[9]) and not redis.call('HGET', task, 'begun') then
  answer = 'overdue'
elseif attempt >= tonumber(ARGV[6]) then
  answer = 'exhausted'
else
  attempt = redis.call('HINCRBY', task, 'attempt', 1)
end
local fence = redis.call('HINCRBY', task, 'fence', 1)
local step = tonumber(redis.call('HGET', task, 'checkpoint_step') or '0')
redis.call('HSET', task, 'status', 'running', 'owner', owner, 'started_at', stamp,
  'lease_until', untils, 'token', ARGV[7], 'answer', answer, 'resumed', step)
if answer == 'run' then redis.call('HSET', task, 'begun', 1) end
redis.call('ZADD', open, stamp, id)
if answer == 'run' and tail ~= '' then
  local resumed = '"resumed_from_step":' .. (step > 0 and step or 'null') .. ','
  append_event(task, events, resumed .. tail)
end
return {answer, fence, attempt, submitted, stamp, step}
